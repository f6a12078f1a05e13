"""The clips of each corpus from a made folder of its layout: labels, speakers, splits, folds and transcripts."""

from pathlib import Path

import pytest
from fixtures.corpus_trees import TREES

from mertool.corpora import read_corpus


@pytest.fixture
def read(tmp_path):
    """A function (name, options) that makes the folder of a corpus and reads it; clips by id."""

    def make(name, **options):
        TREES[name](tmp_path)
        corpus = read_corpus(name, tmp_path, **{"partial": True, **options})
        return corpus, {clip.clip: clip for clip in corpus.manifest.clips}

    return make


def facts(clip):
    return clip.label, clip.speaker, clip.gender, clip.split, clip.text


def test_files_of_one_ravdess_performance_are_one_clip(read, tmp_path):
    corpus, clips = read("ravdess")
    assert set(clips) == {"01-01-06-01-02-01-12", "03-01-01-01-01-02-01"}
    fearful = clips["01-01-06-01-02-01-12"]
    assert facts(fearful) == ("fear", "12", "female", "train", "Dogs are sitting by the door.")
    assert fearful.audio == tmp_path / "Actor_12" / "03-01-06-01-02-01-12.wav"
    assert facts(clips["03-01-01-01-01-02-01"]) == ("neutral", "01", "male", "train", "Kids are talking by the door.")
    assert clips["03-01-01-01-01-02-01"].audio is None
    assert corpus.folds == {"01-01-06-01-02-01-12": "2", "03-01-01-01-01-02-01": "1"}


def test_songs_of_ravdess_are_left_out_and_named(read):
    corpus, _ = read("ravdess")
    assert any(
        "1 media file of no clip of ravdess left out (first: Actor_01/03-02-" in n for n in corpus.manifest.notes
    )


def test_crema_d(read, tmp_path):
    corpus, clips = read("crema-d")
    assert facts(clips["1001_DFA_ANG_XX"]) == ("angry", "1001", "male", "train", "Don't forget a jacket.")
    assert facts(clips["1076_MTI_SAD_LO"])[:3] == ("sad", "1076", "female")
    assert clips["1001_DFA_ANG_XX"].files == (
        tmp_path / "VideoFlash/1001_DFA_ANG_XX.flv",
        tmp_path / "AudioWAV/1001_DFA_ANG_XX.wav",
    )
    assert corpus.folds == {"1001_DFA_ANG_XX": "1", "1076_MTI_SAD_LO": "1"}


def test_crema_d_without_the_table_of_actors_has_no_gender(tmp_path):
    (tmp_path / "1002_IEO_FEA_HI.wav").touch()
    corpus = read_corpus("crema-d", tmp_path, partial=True)
    assert facts(corpus.manifest.clips[0]) == ("fear", "1002", None, "train", "It's eleven o'clock.")
    assert corpus.folds == {"1002_IEO_FEA_HI": "2"}


def test_emodb(read):
    corpus, clips = read("emodb")
    assert facts(clips["03a01Fa"]) == ("happy", "03", "male", "train", "Der Lappen liegt auf dem Eisschrank.")
    assert facts(clips["16b10Wb"])[:3] == ("angry", "16", "female")
    assert corpus.folds == {"03a01Fa": "03", "16b10Wb": "16"}


def test_iemocap_has_four_classes_with_excited_as_happy(read):
    corpus, clips = read("iemocap")
    assert corpus.classes == ("angry", "happy", "neutral", "sad")
    assert {name: clip.label for name, clip in clips.items()} == {
        "Ses01F_impro01_F000": "neutral",
        "Ses01F_impro01_M000": "happy",
        "Ses01F_impro01_F002": "happy",
        "Ses05M_script03_2_F033": "sad",
        "Ses05M_script03_2_M034": "angry",
    }
    assert "2 clips whose label is of no class left out: frustrated (1), no agreement (1)" in corpus.manifest.notes


def test_iemocap_speakers_sessions_and_transcripts(read):
    corpus, clips = read("iemocap")
    # The F of Ses01F names the one with markers; who speaks is told by the last part.
    assert facts(clips["Ses01F_impro01_M000"]) == ("happy", "Ses01_M", "male", "train", "Do you?")
    assert facts(clips["Ses05M_script03_2_F033"]) == ("sad", "Ses05_F", "female", "train", None)
    assert corpus.folds["Ses01F_impro01_M000"] == "Session1"
    assert corpus.folds["Ses05M_script03_2_F033"] == "Session5"
    assert clips["Ses01F_impro01_F000"].text == "Excuse me."
    assert (clips["Ses05M_script03_2_F033"].valence, clips["Ses05M_script03_2_F033"].arousal) == (1.5, 4.0)
    assert clips["Ses01F_impro01_F000"].path.parent.name == "Ses01F_impro01"


def test_iemocap_with_six_classes(read):
    classes = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
    corpus, clips = read("iemocap", classes=classes)
    assert corpus.classes == classes
    assert clips["Ses01F_impro01_M000"].label == "excited"
    assert clips["Ses01F_impro01_F001"].label == "frustrated"


def test_meld_names_clips_by_split(read):
    corpus, clips = read("meld")
    assert facts(clips["train_dia0_utt0"]) == ("sad", "Phoebe", None, "train", "Oh, no.")
    assert facts(clips["dev_dia0_utt0"])[3:] == ("dev", "What?")
    assert facts(clips["test_dia0_utt0"])[:2] == ("happy", "The Fireman")
    assert clips["test_dia0_utt0"].path.parent.name == "output_repeated_splits_test"
    assert corpus.folds == {}


def test_mosi_keeps_sentiment_zero_as_a_number_without_a_class(read):
    corpus, clips = read("mosi")
    assert facts(clips["03bSnISJMiM_1"]) == ("positive", "03bSnISJMiM", None, "train", "ANYHOW IT WAS GOOD")
    assert facts(clips["_dI--eQ6qVU_2"])[0::3] == ("negative", "dev")
    assert (clips["03bSnISJMiM_11"].label, clips["03bSnISJMiM_11"].sentiment) == (None, 0.0)
    assert [clip.sentiment for clip in clips.values()] == [2.4, 0.0, -1.6]
    assert "1 clip whose label is of no class kept for their numbers: neutral (1)" in corpus.manifest.notes


def test_mosi_with_three_classes(read):
    _, clips = read("mosi", classes=("negative", "neutral", "positive"))
    assert clips["03bSnISJMiM_11"].label == "neutral"


def test_mosei_with_the_file_names_of_cmu(read):
    _, clips = read("mosei")
    assert {name: clip.path.name for name, clip in clips.items()} == {
        "_0efYOjQYRc_0": "_0efYOjQYRc_0.mp4",
        "_0efYOjQYRc_3": "_0efYOjQYRc_3.mp4",
    }
    assert clips["_0efYOjQYRc_3"].split == "test"


def test_ch_sims_finds_clips_whatever_their_zeros(read):
    _, clips = read("ch-sims")
    assert facts(clips["video_0001_0001"]) == ("negative", "video_0001", None, "train", "我不想嫁给李茶")
    assert (clips["video_0001_0001"].valence, clips["video_0001_0001"].sentiment) == (-1.0, None)
    assert clips["video_0002_10"].path == Path(clips["video_0002_10"].path.parent, "0010.mp4")


def test_nemo(read):
    corpus, clips = read("nemo")
    assert facts(clips["WR0_surprised_64"]) == ("surprise", "WR0", "male", "train", "Ucho wykrywa dźwięki.")
    assert facts(clips["EB0_fear_35"])[:3] == ("fear", "EB0", "female")
    assert corpus.folds == {"WR0_surprised_64": "WR0", "EB0_fear_35": "EB0"}


def test_msp_podcast_has_test1_as_test(read):
    corpus, clips = read("msp-podcast")
    assert {name[-9:]: clip.split for name, clip in clips.items()} == {
        "0001_0008": "test",
        "0002_0001": "train",
        "0003_0001": "dev",
    }
    assert facts(clips["MSP-PODCAST_0002_0001"]) == ("angry", "41", "female", "train", "That is so annoying.")
    assert (clips["MSP-PODCAST_0002_0001"].valence, clips["MSP-PODCAST_0002_0001"].arousal) == (4.0, 2.2)
    assert facts(clips["MSP-PODCAST_0003_0001"])[:3] == ("contempt", None, None)
    assert any("no agreement (1)" in note for note in corpus.manifest.notes)


def test_dfew_has_the_folds_of_its_authors(read):
    corpus, clips = read("dfew")
    assert [clips[f"{100 * fold:05d}"].label for fold in range(1, 6)] == [
        "happy",
        "sad",
        "neutral",
        "angry",
        "surprise",
    ]
    assert corpus.folds == {f"{100 * fold:05d}": str(fold) for fold in range(1, 6)}
    assert clips["00100"].path.parts[-2:] == ("original", "100.mp4")
    assert clips["00500"].path.parts[-2:] == ("clip_224x224_avi", "00500.avi")


def test_labels_of_mer(read):
    corpus, clips = read("iemocap", map_labels=True)
    assert corpus.classes == ("neutral", "angry", "happy", "sad", "worried", "surprise")
    assert clips["Ses01F_impro01_M000"].label == "happy"
    assert "Ses01F_impro01_F001" not in clips  # frustrated


def test_fear_counts_as_worried_and_calm_as_neutral(read):
    _, clips = read("ravdess", map_labels=True)
    assert clips["01-01-06-01-02-01-12"].label == "worried"


def test_some_emotions_of_mer(read):
    corpus, clips = read("ravdess", map_labels=True, classes=("neutral", "angry", "happy", "sad"))
    assert corpus.classes == ("neutral", "angry", "happy", "sad")
    assert set(clips) == {"03-01-01-01-01-02-01"}


@pytest.mark.parametrize("name", TREES)
def test_every_clip_of_a_made_folder_has_its_file(read, name):
    corpus, clips = read(name)
    assert clips
    assert all(path.is_file() for clip in clips.values() for path in clip.files)
    assert set(corpus.folds) in (set(clips), set())

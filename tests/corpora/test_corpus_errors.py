"""Bad input for `read_corpus`: one clear line each; and a whole corpus with the file names of the original."""

import pytest
from fixtures.corpus_trees import TREES, touch, write

from mertool.corpora import read_corpus
from mertool.errors import MertoolError


def ravdess_names(actors=range(1, 25)):
    """The 60 names of each actor's speech: neutral has one intensity, the other seven emotions two."""
    kinds = [("01", "01"), *[(f"{emotion:02d}", intensity) for emotion in range(2, 9) for intensity in ("01", "02")]]
    for actor in actors:
        for emotion, intensity in kinds:
            for statement in ("01", "02"):
                for repetition in ("01", "02"):
                    yield f"Actor_{actor:02d}/03-01-{emotion}-{intensity}-{statement}-{repetition}-{actor:02d}.wav"


def test_a_whole_corpus_needs_no_permission(tmp_path):
    touch(tmp_path, ravdess_names())
    corpus = read_corpus("ravdess", tmp_path)
    assert len(corpus.manifest) == len(corpus.folds) == 1440
    assert len(corpus.manifest.speakers().values()) == 1440
    assert corpus.manifest.notes == ()


def test_a_half_unpacked_corpus_says_how_many_of_how_many(tmp_path):
    touch(tmp_path, ravdess_names(range(1, 3)))
    with pytest.raises(
        MertoolError, match=r"120 of the 1440 clips of RAVDESS are in .*unpack the rest, or .*--partial"
    ):
        read_corpus("ravdess", tmp_path)
    corpus = read_corpus("ravdess", tmp_path, partial=True)
    assert len(corpus.manifest) == 120
    assert corpus.manifest.notes[0].startswith("120 of the 1440 clips of RAVDESS")


def test_a_few_missing_clips_are_a_note(tmp_path):
    names = list(ravdess_names())
    touch(tmp_path, names[:-10])
    assert read_corpus("ravdess", tmp_path).manifest.notes == (f"1430 of the 1440 clips of RAVDESS are in {tmp_path}",)


def test_a_table_whose_clips_are_missing_names_the_first(tmp_path):
    TREES["nemo"](tmp_path)
    (tmp_path / "samples/WR0_surprised_64.wav").unlink()
    corpus = read_corpus("nemo", tmp_path, partial=True)
    assert "1 of the 4481 clips of nEMO are in" in corpus.manifest.notes[0]
    assert "(first missing: WR0_surprised_64)" in corpus.manifest.notes[0]


def test_a_table_without_any_clip_is_not_unpacked(tmp_path):
    TREES["nemo"](tmp_path)
    for path in (tmp_path / "samples").iterdir():
        path.unlink()
    with pytest.raises(MertoolError, match=r"holds no media file of a clip. Give the folder that holds data.tsv"):
        read_corpus("nemo", tmp_path, partial=True)


def test_a_split_that_is_not_unpacked_is_named(tmp_path):
    TREES["meld"](tmp_path)
    (tmp_path / "test_sent_emo.csv").unlink()
    with pytest.raises(MertoolError, match=r"is not MELD, or not all of it: it holds no test_sent_emo.csv"):
        read_corpus("meld", tmp_path, partial=True)


def test_labels_that_the_map_lacks_are_named(tmp_path):
    TREES["nemo"](tmp_path)
    table = (tmp_path / "data.tsv").read_text(encoding="utf-8").replace("\tfear\t", "\tboredom\t")
    write(tmp_path / "data.tsv", table)
    with pytest.raises(MertoolError, match=r"the label map of nEMO lacks: 'boredom' \(1 clip\): is it another release"):
        read_corpus("nemo", tmp_path, partial=True)


def test_a_table_of_another_corpus_is_refused(tmp_path):
    TREES["mosi"](tmp_path)
    write(tmp_path / "label.csv", "name,label\na,1\n")
    with pytest.raises(MertoolError, match=r"label.csv is not the table of CMU-MOSI: it has no column video_id"):
        read_corpus("mosi", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"), [(",2.4,", ",good,", "could not convert"), (",train", ",pool", "has the mode 'pool'")]
)
def test_a_cell_that_cannot_be_read_is_refused(tmp_path, old, new, message):
    TREES["mosi"](tmp_path)
    table = (tmp_path / "label.csv").read_text(encoding="utf-8")
    write(tmp_path / "label.csv", table.replace(old, new, 1))
    with pytest.raises(MertoolError, match=f"cannot be read as CMU-MOSI .*{message}"):
        read_corpus("mosi", tmp_path)


def test_two_rows_of_one_clip_are_refused(tmp_path):
    TREES["nemo"](tmp_path)
    with open(tmp_path / "data.tsv", "a", encoding="utf-8") as table:
        table.write("EB0_fear_35.wav\tfear\ta\ta\tEB0\tfemale\t27\n")
    with pytest.raises(MertoolError, match="2 clips have the id 'EB0_fear_35'"):
        read_corpus("nemo", tmp_path, partial=True)


def test_sentiment_is_no_emotion_of_mer(tmp_path):
    TREES["mosi"](tmp_path)
    with pytest.raises(MertoolError, match=r"mosi is labelled with sentiment .* leave out --map-labels"):
        read_corpus("mosi", tmp_path, map_labels=True)


@pytest.mark.parametrize(("map_labels", "valid"), [(False, "angry, happy, sad"), (True, "angry, happy, sad")])
def test_a_class_that_no_label_is_of_is_refused(tmp_path, map_labels, valid):
    TREES["iemocap"](tmp_path)
    with pytest.raises(MertoolError, match=f"no label is of the class 'happi': did you mean 'happy'.*valid: {valid}"):
        read_corpus("iemocap", tmp_path, classes=("happi", "sad"), map_labels=map_labels)


def test_a_linked_folder_is_searched_for_tables_too(tmp_path):
    TREES["meld"](tmp_path / "elsewhere")
    (tmp_path / "meld").mkdir()
    for path in (tmp_path / "elsewhere").iterdir():
        (tmp_path / "meld" / path.name).symlink_to(path)
    assert len(read_corpus("meld", tmp_path / "meld", partial=True).manifest) == 3

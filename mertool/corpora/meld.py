"""MELD: one table of utterances per split, such as `train_sent_emo.csv`, and one folder of mp4 files per split.

An utterance is `train_splits/dia0_utt0.mp4`; the same names are in all splits, so a clip is named train_dia0_utt0, as
MERBench does. Source: Poria et al. 2019, https://github.com/declare-lab/MELD, and `datasets/MELD/process.py` of
https://github.com/Strong-AI-Lab/emotion: two clips cannot be read (dia125_utt3 of train) or are not there (dia110_utt7
of dev). The files `final_videos_test...` beside those of the test split are of no utterance.
"""

from collections.abc import Iterator

from mertool.corpora._release import CorpusClip, Release

TITLE = "MELD"
LANGUAGE = "English"
MODALITIES = "audio, video, text"
CLIPS = 13708
SPEAKERS = "over 300, six of them main"
LAYOUT = (
    "train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv and the folders train_splits, dev_splits_complete, "
    "output_repeated_splits_test"
)
LABELS = {
    "neutral": "neutral",
    "joy": "happy",
    "surprise": "surprise",
    "anger": "angry",
    "sadness": "sad",
    "disgust": "disgust",
    "fear": "fear",
}
CLASSES = ("neutral", "surprise", "fear", "sad", "happy", "disgust", "angry")
PROTOCOL = "the splits train, dev and test"
SOURCE = "https://github.com/declare-lab/MELD"
LICENCE = "GPL-3.0 (labels); the videos are of a television series"

FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
COLUMNS = ("utterance", "speaker", "emotion", "dialogue_id", "utterance_id")


def read(release: Release) -> Iterator[CorpusClip]:
    """Yield the utterances of the three tables."""
    files = release.group(lambda path: (path.parent.name, path.stem))
    for split, folder in FOLDERS.items():
        for row in release.rows(f"{split}_sent_emo.csv", *COLUMNS):
            name = f"dia{row['dialogue_id']}_utt{row['utterance_id']}"
            yield CorpusClip(
                clip=f"{split}_{name}",
                files=files.get((folder, name), []),
                label=row["emotion"].lower(),
                text=row["utterance"],
                speaker=row["speaker"],
                split=split,
            )

"""DFEW: `EmoLabel_DataSplit/test(single-labeled)/set_1.csv` to `set_5.csv`, and the clips `Clip/original/1.mp4`, ...

The tables have video_name and label, a number from 1; the five test sets are the folds (Jiang et al. 2020;
https://dfew-dataset.github.io and https://github.com/jiangxingxun/DFEW). Only clips with a single label are in them.
`Clip/clip_224x224_avi/00001.avi` is read where there is no original; the folders of pictures are not read.
"""

from collections.abc import Iterator
from pathlib import Path

from mertool.corpora._release import CorpusClip, Release

TITLE = "DFEW"
LANGUAGE = "several"
MODALITIES = "audio, video"
CLIPS = 11697
SPEAKERS = "not known"
LAYOUT = "EmoLabel_DataSplit/test(single-labeled)/set_1.csv and Clip/original/1.mp4"
LABELS = {
    "1": "happy",
    "2": "sad",
    "3": "neutral",
    "4": "angry",
    "5": "surprise",
    "6": "disgust",
    "7": "fear",
}
CLASSES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
PROTOCOL = "5 folds, the test sets of its authors"
SOURCE = "https://dfew-dataset.github.io"
LICENCE = "academic, by agreement with Southeast University"


def read(release: Release) -> Iterator[CorpusClip]:
    """Yield the clips with a single label."""
    files = release.group(_number)
    for fold in range(1, 6):
        for row in release.rows(f"test(single-labeled)/set_{fold}.csv", "video_name", "label"):
            number = int(row["video_name"])
            of_clip = files.get(number, [])
            originals = [path for path in of_clip if path.parent.name == "original"]
            yield CorpusClip(
                clip=f"{number:05d}",
                files=originals or of_clip,
                label=row["label"],
                fold=str(fold),
            )


def _number(path: Path) -> int | None:
    return int(path.stem) if path.stem.isdecimal() else None

"""Sentiment corpora in the layout of MMSA: `label.csv`, and one mp4 file per clip in `Raw/VIDEO/CLIP.mp4`.

The columns are video_id, clip_id, text, label (a number), annotation and mode (train, valid, test), among others.
Source: Yu et al. 2020 and https://github.com/thuiar/MMSA. In CMU's own releases the clips are named
`Video/Segmented/VIDEO_CLIP.mp4`, which is found as well where such a label.csv lies beside them. Classes are the sign
of the label; as in MERBench and for the accuracy "negative/positive" of the field, zero is of neither class.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from mertool.corpora._release import CorpusClip, Release

COLUMNS = ("video_id", "clip_id", "text", "label", "mode")
SPLITS = {"train": "train", "valid": "dev", "val": "dev", "validation": "dev", "dev": "dev", "test": "test"}


def read_sentiment(release: Release, target: str = "sentiment") -> Iterator[CorpusClip]:
    """Yield the clips of label.csv; the clips of one video count as those of one speaker.

    `target` is the field of the label: `valence` where the scale is not that of MOSI, from -3 to 3.
    """
    files = release.group(_clip_name)
    for row in release.rows("label.csv", *COLUMNS):
        video, number = row["video_id"], row["clip_id"]
        if row["mode"].lower() not in SPLITS:
            raise ValueError(f"clip {video}/{number} has the mode '{row['mode']}'")
        yield CorpusClip(
            clip=f"{video}_{number}",
            files=files.get(_join(video, number), []),
            label=_polarity(float(row["label"])),
            **{target: float(row["label"])},  # type: ignore[arg-type]
            text=row["text"],
            speaker=video,
            split=SPLITS[row["mode"].lower()],
        )


def _clip_name(path: Path) -> str | None:
    """Return VIDEO_CLIP of `VIDEO/0001.mp4` and of `VIDEO_1.mp4`, without leading zeros of the clip."""
    if path.stem.isdecimal():
        return _join(path.parent.name, path.stem)
    match = re.fullmatch(r"(.+)_(\d+)", path.stem)
    return _join(*match.groups()) if match else None


def _join(video: str, number: str) -> str:
    return f"{video}_{number.lstrip('0') or '0'}"


def _polarity(value: float) -> str:
    if value == 0:
        return "neutral"
    return "positive" if value > 0 else "negative" if value < 0 else str(value)

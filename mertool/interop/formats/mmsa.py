"""Feature files of MMSA: one pickle with features, texts and sentiment of MOSI, MOSEI or SIMS.

It holds {train, valid, test}, each with a list or array of N entries by key: `id` (`VIDEO$_$CLIP`), `raw_text`,
`audio`, `vision` and `text` (N, T, D), `annotations` (Negative, Neutral, Positive), `regression_labels`, and without
alignment `audio_lengths` and `vision_lengths`. Clips get the id `VIDEO_CLIP`, as `--corpus` names those of the media.
Source: the README and `data_loader.py` of https://github.com/thuiar/MMSA.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import MertoolError, combine_errors
from mertool.interop.annotations import Annotation, Annotations
from mertool.interop.features import FeatureSource
from mertool.interop.pickles import UNREADABLE, load_pickle
from mertool.manifest import NUMBERS, clip_id_faults

TITLE = "a .pkl of MMSA"
PRIORITY = 1
SUFFIXES = (".pkl", ".pickle")
SPLITS = {"train": "train", "valid": "dev", "test": "test"}
FEATURE_KEYS = {"audio": "audio", "video": "vision", "text": "text"}
SEPARATOR = "$_$"
REMEDY = "give a .pkl of MMSA with train, valid and test"


def recognises(path: Path) -> bool:
    """Return whether a path is that of a pickle."""
    return path.suffix.lower() in SUFFIXES


recognises_features = recognises


def read_labels(path: Path) -> Annotations:
    """Return annotations, sentiment, texts and splits.

    The video stands for the speaker, so that folds keep the clips of one video together. Raises MertoolError for a file
    of another content, or one that would run code.
    """
    rows = []
    for split, content in _read(path).items():
        labels, texts = content.get("annotations"), content.get("raw_text")
        numbers = content.get("regression_labels")
        for row, name in enumerate(content["id"]):
            video, _, number = str(name).partition(SEPARATOR)
            rows.append(
                Annotation(
                    name=f"{video}/{number}" if number else video,
                    clip=_clip_id(name),
                    label=None if labels is None else _text(labels[row]),
                    text=None if texts is None else _text(texts[row]),
                    sentiment=None if numbers is None else _number(numbers[row], str(name), path),
                    speaker=video,
                    split=SPLITS[split],
                )
            )
    return Annotations(path=path, rows=tuple(rows))


def read_features(path: Path, modality: str) -> FeatureSource:
    """Return the frames of `audio`, `video` or `text` of all clips.

    The zeros that pad clips to T frames are removed. Infinite values become zeros, as MMSA replaces them. Raises
    MertoolError for features that are not (N, T, D), or whose lengths do not fit.
    """
    if modality not in FEATURE_KEYS:
        raise MertoolError(f"{path} holds no {modality}: give --modality {', '.join(FEATURE_KEYS)}")
    key, splits = FEATURE_KEYS[modality], _read(path)
    faults: list[str] = []
    arrays = {split: _feature_array(content, key, split, faults) for split, content in splits.items()}
    lengths = {split: _lengths(content, key, arrays[split], split, faults) for split, content in splits.items()}
    widths = {array.shape[-1] for array in arrays.values() if array.ndim == 3}
    if len(widths) > 1:
        faults.append(f"{key} has {' and '.join(map(str, sorted(widths)))} channels")
    if faults:
        raise combine_errors(str(path), faults)

    def clips() -> Iterator[tuple[str, np.ndarray]]:
        for split, content in splits.items():
            for row, name in enumerate(content["id"]):
                frames = np.asarray(arrays[split][row], np.float32)
                known = lengths[split]
                length = None if known is None else int(known[row])
                frames = np.where(np.isneginf(frames), np.float32(0), frames)
                yield _clip_id(name), _without_padding(frames, length)

    return FeatureSource(
        name=f"{path.stem}-{key}", toolkit="mmsa", modality=modality, pooled=False, channels=widths.pop(), clips=clips
    )


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the content by split, every list of which has as many entries as there are clips."""
    try:
        with open(path, "rb") as file:
            content = load_pickle(file, "features")
    except UNREADABLE as error:
        raise MertoolError(f"{path} is not a feature file of MMSA ({_first_line(error)}): {REMEDY}") from error
    if not isinstance(content, dict) or not set(content) & set(SPLITS):
        raise MertoolError(f"{path} is not a feature file of MMSA: {REMEDY}")
    splits = {split: content[split] for split in SPLITS if split in content}
    faults: list[str] = []
    for split, values in splits.items():
        if not isinstance(values, dict) or not isinstance(values.get("id"), list | tuple | np.ndarray):
            faults.append(f"{split} has no list of id")
            continue
        faults += _length_faults(split, values)
    if not faults:
        names = [_clip_id(name) for values in splits.values() for name in values["id"]]
        faults += [fault for name in names for fault in clip_id_faults(name)]
        if len(set(names)) < len(names):
            faults.append("ids are repeated")
    if faults:
        raise combine_errors(str(path), faults)
    return splits


def _length_faults(split: str, values: dict[str, Any]) -> list[str]:
    count = len(values["id"])
    return [
        f"{split} has {len(values[key])} {key} for {count} id"
        for key in ("raw_text", "annotations", "regression_labels", *FEATURE_KEYS.values())
        if isinstance(values.get(key), list | tuple | np.ndarray) and len(values[key]) != count
    ]


def _feature_array(content: dict[str, Any], key: str, split: str, faults: list[str]) -> np.ndarray:
    """Return the features (N, T, D) of a split; a fault if they are not."""
    try:
        array = np.asarray(content[key])
    except (KeyError, ValueError):
        array = np.zeros(0)
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.number) or 0 in array.shape[1:]:
        faults.append(f"{split} has no {key} of the shape (clips, frames, channels)")
    return array


def _lengths(content: dict[str, Any], key: str, array: np.ndarray, split: str, faults: list[str]) -> np.ndarray | None:
    """Return the number of frames of each clip; None where the file has none, as for aligned features."""
    if content.get(f"{key}_lengths") is None or array.ndim != 3:
        return None
    try:
        lengths = np.asarray(content[f"{key}_lengths"], np.int64).reshape(-1)
    except (TypeError, ValueError):
        faults.append(f"{split} has {key}_lengths that are not whole numbers")
        return None
    if len(lengths) != len(array):
        faults.append(f"{split} has {len(lengths)} {key}_lengths for {len(array)} id")
    elif len(lengths) and (lengths.min() < 0 or lengths.max() > array.shape[1]):
        wrong = int(np.flatnonzero((lengths < 0) | (lengths > array.shape[1]))[0])
        faults.append(
            f"{split} has the {key} length {lengths[wrong]} of '{content['id'][wrong]}', there are {array.shape[1]} "
            "frames"
        )
    return lengths


def _without_padding(frames: np.ndarray, length: int | None) -> np.ndarray:
    """Return the frames (T, D) of a clip without those that fill it up, at the end or, in older files, at the front."""
    used = np.flatnonzero(frames.any(1))
    if len(used) == 0:
        return frames[:0]
    if length is None:
        return frames[used[0] : used[-1] + 1]
    if used[-1] >= length and used[0] >= len(frames) - length:
        return frames[len(frames) - length :]
    return frames[:length]


def _clip_id(name: object) -> str:
    return str(name).replace(SEPARATOR, "_")


def _text(value: object) -> str | None:
    # The text of a container that holds itself many times over would never end.
    return (str(value).strip() or None) if isinstance(value, str | int | float | np.generic) else None


def _number(value: object, name: str, path: Path) -> float:
    """Return the sentiment of a clip; raise MertoolError if it is not one."""
    low, high = NUMBERS["sentiment"]
    try:
        number = float(np.asarray(value, np.float64).item())
    except (TypeError, ValueError):
        number = float("nan")
    if not low <= number <= high:
        raise MertoolError(f"{path}: the regression_labels entry of '{name}' is not a number from {low:g} to {high:g}")
    return round(number, 6)  # float32 has no more digits


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

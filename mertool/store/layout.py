"""What stands where in a store file: the small tables, and reading and writing them."""

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mertool.features import Recipe

SCHEMA = 1
TEXT = h5py.string_dtype("utf-8")
FAILURE_TYPE = np.dtype([(name, TEXT) for name in ("clip", "digest", "stage", "reason", "message")])


@dataclass(frozen=True)
class ClipFeatures:
    """Features of one clip: (L, D) pooled, (T, ...) frames, or (L, T, D) frames of several layers.

    `seconds` of media, `frames_seen` frames looked at, `face_share` the share of those with the face.
    """

    clip: str
    digest: str
    values: np.ndarray
    seconds: float = float("nan")
    frames_seen: int = 0
    face_share: float = float("nan")


@dataclass(frozen=True)
class Failure:
    """A clip without features: at which stage, a reason code of `errors.REASONS`, and what was seen."""

    clip: str
    digest: str
    stage: str
    reason: str
    message: str


def parts_folder(path: Path) -> Path:
    """Where the parts of an unfinished store lie."""
    return path.with_name(path.name + ".parts")


def write_tables(
    file: h5py.File,
    recipe: Recipe,
    origin: dict[str, Any],
    clips: Sequence[ClipFeatures],
    failures: Sequence[Failure],
) -> None:
    """Everything but the values: attributes, the table of clips and the table of failures."""
    file.attrs["schema"] = SCHEMA
    file.attrs["recipe"] = json.dumps(recipe.to_json(), ensure_ascii=False)
    file.attrs["fingerprint"] = recipe.fingerprint
    file.attrs["origin"] = json.dumps(origin, ensure_ascii=False)
    group = file.create_group("clips")
    group.create_dataset("id", data=[c.clip for c in clips], dtype=TEXT)
    group.create_dataset("digest", data=[c.digest for c in clips], dtype=TEXT)
    group["seconds"] = np.array([c.seconds for c in clips], np.float32)
    group["frames_seen"] = np.array([c.frames_seen for c in clips], np.int32)
    group["face_share"] = np.array([c.face_share for c in clips], np.float32)
    table = np.array([astuple(failure) for failure in failures], FAILURE_TYPE)
    file.create_dataset("failures", data=table)


def read_clips(file: h5py.File) -> list[ClipFeatures]:
    """The table of clips, without values."""
    group, empty = file["clips"], np.zeros(0)
    columns = (
        texts(group["id"]),
        texts(group["digest"]),
        group["seconds"][:].tolist(),
        group["frames_seen"][:].tolist(),
        group["face_share"][:].tolist(),
    )
    return [
        ClipFeatures(clip, digest, empty, seconds, seen, share)
        for clip, digest, seconds, seen, share in zip(*columns, strict=True)
    ]


def read_failures(file: h5py.File) -> list[Failure]:
    """The table of failures."""
    return [Failure(*(_text(cell) for cell in row)) for row in file["failures"][:]]


def texts(dataset: h5py.Dataset) -> list[str]:
    """A column of strings."""
    return [_text(cell) for cell in dataset[:]]


def first_line(error: BaseException) -> str:
    """HDF5's errors are several lines long; the first says what happened."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _text(cell: Any) -> str:
    return cell.decode() if isinstance(cell, bytes) else str(cell)

"""The tables of a store file: their records, reading and writing."""

import json
from collections.abc import Sequence
from dataclasses import KW_ONLY, astuple, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mertool.features import Recipe

SCHEMA = 1
STRING = h5py.string_dtype("utf-8")
FAILURE_COLUMNS = np.dtype([(name, STRING) for name in ("clip", "digest", "stage", "reason", "message")])
MEDIA_STATS = {"seconds": np.float32, "frames_seen": np.int32, "face_share": np.float32}


@dataclass(frozen=True)
class ClipFeatures:
    """Features of one clip.

    Attributes:
        clip: Clip id.
        digest: Digest of the media that the features were made from.
        values: (L, D) pooled, (T, ...) frames of one layer, or (L, T, D) frames of several.
        seconds: Duration of the media.
        frames_seen: Number of video frames that were looked at.
        face_share: Share of them that show the face.
    """

    clip: str
    digest: str
    values: np.ndarray
    _: KW_ONLY
    seconds: float = float("nan")
    frames_seen: int = 0
    face_share: float = float("nan")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A clip without features.

    Attributes:
        clip: Clip id.
        digest: Digest of the media.
        stage: Stage of the extraction that failed.
        reason: A code of `errors.REASONS`.
        message: Details for people.
    """

    clip: str
    digest: str
    stage: str
    reason: str
    message: str


def parts_folder(path: Path) -> Path:
    """Return the folder with the part files of an unfinished store."""
    return path.with_name(path.name + ".parts")


def write_tables(
    file: h5py.File,
    *,
    recipe: Recipe,
    provenance: dict[str, Any],
    clips: Sequence[ClipFeatures],
    failures: Sequence[Failure],
) -> None:
    """Write everything but the values: attributes, the table of clips and the table of failures."""
    file.attrs["schema"] = SCHEMA
    file.attrs["recipe"] = json.dumps(recipe.to_json(), ensure_ascii=False)
    file.attrs["fingerprint"] = recipe.fingerprint
    file.attrs["origin"] = json.dumps(provenance, ensure_ascii=False)
    table = file.create_group("clips")
    table.create_dataset("id", data=[clip.clip for clip in clips], dtype=STRING)
    table.create_dataset("digest", data=[clip.digest for clip in clips], dtype=STRING)
    for name, dtype in MEDIA_STATS.items():
        table[name] = np.array([getattr(clip, name) for clip in clips], dtype)
    file.create_dataset("failures", data=np.array([astuple(failure) for failure in failures], FAILURE_COLUMNS))


def read_clips(file: h5py.File) -> list[ClipFeatures]:
    """Return the table of clips; their values are empty arrays."""
    table, no_values = file["clips"], np.zeros(0)
    stats = zip(*(table[name][:].tolist() for name in MEDIA_STATS), strict=True)
    return [
        ClipFeatures(clip, digest, no_values, **dict(zip(MEDIA_STATS, row, strict=True)))
        for clip, digest, row in zip(read_strings(table["id"]), read_strings(table["digest"]), stats, strict=True)
    ]


def read_failures(file: h5py.File) -> list[Failure]:
    """Return the table of failures."""
    names = FAILURE_COLUMNS.names or ()
    return [Failure(**dict(zip(names, map(_decode, row), strict=True))) for row in file["failures"][:]]


def read_strings(dataset: h5py.Dataset) -> list[str]:
    """Return a column of strings."""
    return [_decode(cell) for cell in dataset[:]]


def first_line(error: BaseException) -> str:
    """Return the first line of an error of HDF5: the others are a stack of C functions."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _decode(cell: Any) -> str:
    return cell.decode() if isinstance(cell, bytes) else str(cell)

"""The tables of a store file: their records, reading and writing."""

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mertool.errors import REASONS, ClipError
from mertool.features import Recipe
from mertool.media_stats import MediaStats

SCHEMA = 2
STRING = h5py.string_dtype("utf-8")
FAILURE_COLUMNS = np.dtype([(name, STRING) for name in ("clip", "digest", "stage", "reason", "message")])
# Columns of the table of clips, one for each field of MediaStats.
MEDIA_STATS = {
    "seconds": np.float32,
    "frames_seen": np.int32,
    "face_share": np.float32,
    "sample_rate": np.int32,
    "channels": np.int32,
    "audio_tracks": np.int32,
    "audio_track": np.int32,
    "note": STRING,
}


@dataclass(frozen=True)
class ClipFeatures(MediaStats):
    """Features of one clip, with the facts of its media.

    Attributes:
        clip: Clip id.
        digest: Digest of the media that the features were made from.
        values: (L, D) pooled, (T, ...) frames of one layer, or (L, T, D) frames of several.
    """

    clip: str
    digest: str
    values: np.ndarray


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

    @classmethod
    def of(cls, clip: str, digest: str, error: ClipError) -> "Failure":
        """Return the record of an error, with the stage that its reason belongs to."""
        stage = REASONS[error.reason].stage
        return cls(clip=clip, digest=digest, stage=stage, reason=error.reason, message=error.message)


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
        table.create_dataset(name, data=[getattr(clip, name) for clip in clips], dtype=dtype)
    file.create_dataset("failures", data=np.array([astuple(failure) for failure in failures], FAILURE_COLUMNS))


def read_clips(file: h5py.File) -> list[ClipFeatures]:
    """Return the table of clips; their values are empty arrays."""
    table, no_values = file["clips"], np.zeros(0)
    rows = zip(read_strings(table["id"]), read_strings(table["digest"]), read_media_stats(file), strict=True)
    return [ClipFeatures(clip, digest, no_values, **stats.to_dict()) for clip, digest, stats in rows]


def read_media_stats(file: h5py.File) -> list[MediaStats]:
    """Return the facts of each clip's media."""
    table = file["clips"]
    columns = {
        name: read_strings(table[name]) if dtype == STRING else table[name][:].tolist()
        for name, dtype in MEDIA_STATS.items()
    }
    return [MediaStats(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def read_failures(file: h5py.File) -> list[Failure]:
    """Return the table of failures."""
    names = FAILURE_COLUMNS.names or ()
    return [Failure(**dict(zip(names, map(_decode, row), strict=True))) for row in file["failures"][:]]


def read_strings(dataset: h5py.Dataset) -> list[str]:
    """Return a column of strings; raise ValueError if they are longer than the file, or not in UTF-8."""
    strings: list[str] = []
    size, limit = 0, dataset.file.id.get_filesize()
    # All rows may point at one long string, and so need more memory than there is: blocks begin small and double.
    while len(strings) < len(dataset):
        block = [_decode(cell) for cell in dataset[len(strings) : 2 * len(strings) + 1]]
        size += sum(map(len, block))
        if size > limit:
            raise ValueError(f"{dataset.name} holds more text than the file has bytes")
        strings += block
    return strings


def _decode(cell: Any) -> str:
    return cell.decode() if isinstance(cell, bytes) else str(cell)

"""`FeatureStore`: reading a finished store."""

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mertool.errors import MertoolError
from mertool.features import Recipe
from mertool.media_stats import MediaStats
from mertool.store.layout import (
    SCHEMA,
    Failure,
    first_line,
    parts_folder,
    read_failures,
    read_media_stats,
    read_strings,
)


class FeatureStore:
    """A finished store, open for reading. Use it as a context manager.

    Opening raises MertoolError if there is no store at `path`, or none that this version can read.

    Attributes:
        path: The file.
        recipe: Everything that decides the values.
        fingerprint: Digest of the recipe.
        provenance: Where encoder and adapters came from; changes no value.
        ids: Ids of the N clips.
        index: Row of each clip id.
        pooled: True if there is one vector per clip and layer, False if there are frames.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = _open(path)
        try:
            schema = self._file.attrs["schema"]
            if schema != SCHEMA:
                raise MertoolError(f"{path} has store schema {schema}; this version reads {SCHEMA}: extract it again")
            self.recipe = Recipe.from_json(json.loads(self._file.attrs["recipe"]))
            self.fingerprint = str(self._file.attrs["fingerprint"])
            self.provenance: dict[str, Any] = json.loads(self._file.attrs["origin"])
            self.ids: list[str] = read_strings(self._file["clips/id"])
        except (KeyError, TypeError, ValueError) as error:
            self._file.close()
            raise MertoolError(f"{path} is not a feature store of mertool ({first_line(error)})") from error
        except MertoolError:
            self._file.close()
            raise
        self.index = {clip: row for row, clip in enumerate(self.ids)}
        self.pooled = "offset" not in self._file
        # In memory, because `frames` looks them up for every clip.
        self._offset, self._length = (
            np.zeros(0, np.int64) if self.pooled else self._file[name][:] for name in ("offset", "length")
        )

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer of each entry of the L axis."""
        return self.recipe.layer_axis

    @property
    def channels(self) -> int:
        """The number of channels D."""
        return int(self._file["values"].shape[-1])

    def rows(self, clips: Iterable[str]) -> np.ndarray:
        """Return the rows of clips; raise MertoolError if some have no features."""
        clips = list(clips)
        missing = [clip for clip in clips if clip not in self.index]
        if missing:
            raise MertoolError(
                f"{self.path} has no features of {len(missing)} of {len(clips)} clips "
                f"(first: {missing[0]}): extract them, or see `mertool store ls --failures`"
            )
        return np.array([self.index[clip] for clip in clips], dtype=np.int64)

    def read(self, clips: Iterable[str] | None = None) -> np.ndarray:
        """Return the values (N, L, D) of a pooled store, float32, in the order of `clips` (default: all)."""
        if not self.pooled:
            raise MertoolError(f"{self.path} holds frames; a pooled store (--pool mean) is needed here")
        rows = np.arange(len(self.ids)) if clips is None else self.rows(clips)
        if len(rows) == 0:
            return np.zeros((0, *self._file["values"].shape[1:]), np.float32)
        # HDF5 selects single rows slowly: from a quarter of them on, reading all and indexing in memory is faster.
        if len(rows) * 4 >= len(self.ids):
            values = self._file["values"][:]
            in_order = np.array_equal(rows, np.arange(len(self.ids)))
            return (values if in_order else values[rows]).astype(np.float32)
        unique, inverse = np.unique(rows, return_inverse=True)
        return self._file["values"][unique][inverse].astype(np.float32)

    def read_block(self, start: int, stop: int) -> np.ndarray:
        """Return the values (stop - start, L, D) of consecutive rows of a pooled store, as stored, by one read."""
        return self._file["values"][start:stop]

    def frames(self, clip: str) -> np.ndarray:
        """Return the frames of one clip as stored: (T, ...) or (L, T, D)."""
        self._check_frames()
        row = self.index[clip] if clip in self.index else int(self.rows([clip])[0])
        return self._slice_frames(self._file["values"], row)

    def all_frames(self, clips: Iterable[str] | None = None) -> list[np.ndarray]:
        """Return the frames of several clips (default: all) as stored, in their order; views of one array."""
        self._check_frames()
        names = self.ids if clips is None else list(clips)
        rows = self.rows(names)
        if len(rows) * 4 < len(self.ids):
            return [self.frames(clip) for clip in names]
        values = self._file["values"][:]
        return [self._slice_frames(values, row) for row in rows.tolist()]

    def read_frame_block(self, start: int, stop: int) -> list[np.ndarray]:
        """Return the frames (T, D) of consecutive rows of a store of one layer, as stored, by one read; views of it."""
        first, ends = int(self._offset[start]), self._offset[start:stop] + self._length[start:stop]
        values = self._file["values"][first : int(ends[-1])]
        return np.split(values, (ends[:-1] - first).tolist())

    def lengths(self, clips: Iterable[str]) -> np.ndarray:
        """Return the number of frames (N,) of each clip of a frame store."""
        return self._length[self.rows(clips)]

    def media_stats(self) -> dict[str, np.ndarray]:
        """Return the facts of the media by name, each (N,) and in the order of the clips; see `MediaStats`."""
        rows = self.media_stats_of_clips()
        return {field.name: np.array([getattr(row, field.name) for row in rows]) for field in fields(MediaStats)}

    def media_stats_of_clips(self) -> list[MediaStats]:
        """Return the facts of each clip's media, in the order of the clips."""
        return read_media_stats(self._file)

    def digests(self) -> dict[str, str]:
        """Return, by clip id, the digest of the media that the features were made from."""
        return dict(zip(self.ids, read_strings(self._file["clips/digest"]), strict=True))

    def failures(self) -> list[Failure]:
        """Return the clips without features, with their reasons."""
        return read_failures(self._file)

    def validate(self) -> list[str]:
        """Return the faults of the content, for people; an intact store has none. It reads all values."""
        faults = []
        if self.fingerprint != self.recipe.fingerprint:
            faults.append("the fingerprint does not belong to the recipe")
        if len(self.index) != len(self.ids):
            faults.append("clip ids are repeated")
        both = set(self.ids) & {failure.clip for failure in self.failures()}
        if both:
            faults.append(f"{len(both)} clips have features and a failure")
        if "values" not in self._file:
            return [*faults, "the values are missing"]
        columns = dict(self._file["clips"].items())
        columns |= {name: self._file[name] for name in ("offset", "length") if name in self._file}
        uneven = [name for name, column in columns.items() if len(column) != len(self.ids)]
        if uneven:  # without equal lengths the checks below would fail themselves
            return [*faults, f"there are {len(self.ids)} clip ids, but not as many rows of {', '.join(uneven)}"]
        faults += self._shape_faults()
        if not _all_finite(self._file["values"]):
            faults.append("values hold NaN or infinity")
        return faults

    def _shape_faults(self) -> list[str]:
        shape = self._file["values"].shape
        if self.pooled:
            expected = (len(self.ids), len(self.layers))
            fits = len(shape) == 3 and shape[:2] == expected
            return [] if fits else [f"values are {shape}, not ({expected[0]}, {expected[1]}, D)"]
        n_frames = shape[1 if len(self.layers) > 1 else 0]
        end_to_end = np.array_equal(self._offset, np.cumsum(self._length) - self._length)
        if end_to_end and self._length.sum() == n_frames and not (self._length < 1).any():
            return []
        return ["offsets and lengths do not cover the frames end to end"]

    def _check_frames(self) -> None:
        if self.pooled:
            raise MertoolError(f"{self.path} is pooled; a frame store (--pool none) is needed here")

    def _slice_frames(self, values: h5py.Dataset | np.ndarray, row: int) -> np.ndarray:
        frames = slice(int(self._offset[row]), int(self._offset[row] + self._length[row]))
        return values[:, frames] if len(self.layers) > 1 else values[frames]


def _open(path: Path) -> h5py.File:
    if not path.exists():
        parts = parts_folder(path)
        hint = f"; {parts} holds an unfinished extraction: run it again" if parts.exists() else ""
        raise MertoolError(f"store {path} does not exist{hint}. `mertool extract` makes stores")
    if path.is_dir():
        raise MertoolError(f"{path} is a folder: give the path of a store (.h5)")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise MertoolError(f"{path} is not a readable HDF5 file ({first_line(error)})") from error


def _all_finite(values: h5py.Dataset, block_values: int = 1 << 22) -> bool:
    """Return True if there is no NaN or infinity; read in blocks along the longer of the first two axes."""
    if not np.issubdtype(values.dtype, np.floating) or values.size == 0:
        return True
    axis = 1 if values.ndim > 2 and values.shape[1] > values.shape[0] else 0
    step = max(1, block_values * values.shape[axis] // values.size)
    blocks = (slice(start, start + step) for start in range(0, values.shape[axis], step))
    return all(bool(np.isfinite(values[:, block] if axis else values[block]).all()) for block in blocks)

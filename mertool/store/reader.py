"""`FeatureStore`: reading a finished store."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mertool.errors import MertoolError
from mertool.features import Recipe
from mertool.store.layout import SCHEMA, Failure, first_line, parts_folder, read_failures, texts


class FeatureStore:
    """A finished store, open for reading. Use as a context manager."""

    def __init__(self, path: Path):
        self.path = path
        if not path.exists():
            parts = parts_folder(path)
            hint = f"; {parts} holds an unfinished extraction: run it again" if parts.exists() else ""
            raise MertoolError(f"store {path} does not exist{hint}. `mertool extract` makes stores")
        if path.is_dir():
            raise MertoolError(f"{path} is a folder: give the path of a store (.h5)")
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise MertoolError(f"{path} is not a readable HDF5 file ({first_line(error)})") from error
        try:
            schema = self._file.attrs["schema"]
            if schema != SCHEMA:
                raise MertoolError(f"{path} has store schema {schema}; this version reads {SCHEMA}")
            self.recipe = Recipe.from_json(json.loads(self._file.attrs["recipe"]))
            self.fingerprint = str(self._file.attrs["fingerprint"])
            self.provenance: dict[str, Any] = json.loads(self._file.attrs["origin"])
            self.ids: list[str] = texts(self._file["clips/id"])
        except (KeyError, TypeError, ValueError) as error:
            self._file.close()
            raise MertoolError(f"{path} is not a feature store of mertool ({first_line(error)})") from error
        except MertoolError:
            self._file.close()
            raise
        self.index = {clip: row for row, clip in enumerate(self.ids)}
        self.pooled = "offset" not in self._file
        # Read once: of a frame store they are looked up for every clip.
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
        """Which layer each entry of the L axis is."""
        return self.recipe.layer_axis

    @property
    def channels(self) -> int:
        """D."""
        return int(self._file["values"].shape[-1])

    def rows(self, clips: Iterable[str]) -> np.ndarray:
        """Row numbers of clips; the first clip that is not there is an error."""
        wanted = list(clips)
        missing = [clip for clip in wanted if clip not in self.index]
        if missing:
            raise MertoolError(
                f"{self.path} has no features of {len(missing)} of {len(wanted)} clips "
                f"(first: {missing[0]}): extract them, or see `mertool store ls --failures`"
            )
        return np.array([self.index[clip] for clip in wanted], dtype=np.int64)

    def read(self, clips: Iterable[str] | None = None) -> np.ndarray:
        """Values (N, L, D) of a pooled store as float32, in the order of `clips` (default: all)."""
        if not self.pooled:
            raise MertoolError(f"{self.path} holds frames; a pooled store (--pool mean) is needed here")
        rows = np.arange(len(self.ids)) if clips is None else self.rows(clips)
        if len(rows) == 0:
            return np.zeros((0, *self._file["values"].shape[1:]), np.float32)
        # One sequential read and a gather beat HDF5's point selection unless few rows are wanted.
        if len(rows) * 4 >= len(self.ids):
            values = self._file["values"][:]
            in_order = np.array_equal(rows, np.arange(len(self.ids)))
            return (values if in_order else values[rows]).astype(np.float32)
        unique, inverse = np.unique(rows, return_inverse=True)
        return self._file["values"][unique][inverse].astype(np.float32)

    def frames(self, clip: str) -> np.ndarray:
        """Frames of one clip as stored: (T, ...) or (L, T, D)."""
        if self.pooled:
            raise MertoolError(f"{self.path} is pooled; a frame store (--pool none) is needed here")
        row = self.index[clip] if clip in self.index else int(self.rows([clip])[0])
        start, length = int(self._offset[row]), int(self._length[row])
        values = self._file["values"]
        return values[:, start : start + length] if len(self.layers) > 1 else values[start : start + length]

    def all_frames(self, clips: Iterable[str] | None = None) -> list[np.ndarray]:
        """Frames of several clips (default: all) as stored, in their order; views of one array in memory."""
        if self.pooled:
            raise MertoolError(f"{self.path} is pooled; a frame store (--pool none) is needed here")
        names = self.ids if clips is None else list(clips)
        rows = self.rows(names)
        if len(rows) * 4 < len(self.ids):
            return [self.frames(clip) for clip in names]
        values = self._file["values"][:]
        spans = [slice(start, start + n) for start, n in zip(self._offset[rows], self._length[rows], strict=True)]
        return [values[:, span] if len(self.layers) > 1 else values[span] for span in spans]

    def block(self, start: int, stop: int) -> np.ndarray:
        """Values (stop - start, L, D) of consecutive rows of a pooled store, as stored, by one read."""
        return self._file["values"][start:stop]

    def frame_block(self, start: int, stop: int) -> list[np.ndarray]:
        """Frames (T, D) of consecutive rows of a frame store of one layer, as stored, by one read; views of it."""
        first, ends = int(self._offset[start]), self._offset[start:stop] + self._length[start:stop]
        values = self._file["values"][first : int(ends[-1])]
        return np.split(values, (ends[:-1] - first).tolist())

    def lengths(self, clips: Iterable[str]) -> np.ndarray:
        """Numbers of frames per clip of a frame store."""
        return self._length[self.rows(clips)]

    def media_stats(self) -> dict[str, np.ndarray]:
        """Per-clip media facts, each (N,): seconds, frames_seen, face_share."""
        return {name: self._file["clips"][name][:] for name in ("seconds", "frames_seen", "face_share")}

    def digests(self) -> dict[str, str]:
        """Digest of the media each clip's features were made from."""
        return dict(zip(self.ids, texts(self._file["clips/digest"]), strict=True))

    def failures(self) -> list[Failure]:
        """The clips without features, with their reasons."""
        return read_failures(self._file)

    def validate(self) -> list[str]:
        """What is wrong inside the file; empty for a sound store."""
        found = []
        if self.fingerprint != self.recipe.fingerprint:
            found.append("the fingerprint does not belong to the recipe")
        if len(self.index) != len(self.ids):
            found.append("clip ids stand twice")
        both = set(self.ids) & {failure.clip for failure in self.failures()}
        if both:
            found.append(f"{len(both)} clips have features and a failure")
        if "values" not in self._file:
            return [*found, "the values are missing"]
        values, clips = self._file["values"], self._file["clips"]
        tables = [(name, clips[name]) for name in clips]
        tables += [(name, self._file[name]) for name in ("offset", "length") if name in self._file]
        uneven = [name for name, table in tables if len(table) != len(self.ids)]
        if uneven:
            return [*found, f"there are {len(self.ids)} clip ids, but not as many rows of {', '.join(uneven)}"]
        if self.pooled and (values.ndim != 3 or values.shape[:2] != (len(self.ids), len(self.layers))):
            found.append(f"values are {values.shape}, not ({len(self.ids)}, {len(self.layers)}, D)")
        if not self.pooled:
            offset, length = self._file["offset"][:], self._file["length"][:]
            end = values.shape[1 if len(self.layers) > 1 else 0]
            covered = np.array_equal(offset, np.cumsum(length) - length) and length.sum() == end
            if not covered or (length < 1).any():
                found.append("offsets and lengths do not cover the frames end to end")
        if not _all_finite(values):
            found.append("values hold NaN or infinity")
        return found


def _all_finite(values: h5py.Dataset, size: int = 1 << 22) -> bool:
    """Read in blocks of about `size` values along the longer of the first two axes."""
    if not np.issubdtype(values.dtype, np.floating) or values.size == 0:
        return True
    axis = 1 if values.ndim > 2 and values.shape[1] > values.shape[0] else 0
    step = max(1, size * values.shape[axis] // values.size)
    blocks = (slice(start, start + step) for start in range(0, values.shape[axis], step))
    return all(bool(np.isfinite(values[:, block] if axis else values[block]).all()) for block in blocks)

"""`FeatureStore`: reading a finished store."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mertool.errors import MertoolError
from mertool.features import Recipe
from mertool.media_digest import digest_of_signature
from mertool.media_stats import MediaStats
from mertool.store.hdf5 import find_damage, first_line, is_sealed, open_hdf5
from mertool.store.layout import SCHEMA, Failure, parts_folder, read_failures, read_media_stats, read_strings
from mertool.store.structure import check_structure
from mertool.untrusted import parse_json


class FeatureStore:
    """A finished store, open for reading. Use it as a context manager.

    Opening raises MertoolError if there is no store at `path`, or none that this version can read: one with another
    structure, repeated clip ids, links, or values in other files. Opening reads no values.

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
            with _explained(path):
                self.recipe, self.provenance = read_header(self._file)
                check_structure(self._file, self.recipe)
                self.ids: list[str] = read_strings(self._file["clips/id"])
                self.index = {clip: row for row, clip in enumerate(self.ids)}
                if len(self.index) < len(self.ids):
                    raise ValueError("clip ids are repeated")
                self.fingerprint = self.recipe.fingerprint
                self.pooled = self.recipe.pool != "none"
                # In memory, because `frames` looks them up for every clip.
                self._offset, self._length = (
                    np.zeros(0, np.int64) if self.pooled else self._file[name][:] for name in ("offset", "length")
                )
        except BaseException:
            self._file.close()
            raise

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
    def dtype(self) -> np.dtype:
        """The type of the values; float32 with a recipe of float16 if a clip has a value beyond that format."""
        return self._file["values"].dtype

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
            values = self._read_values(slice(None))
            in_order = np.array_equal(rows, np.arange(len(self.ids)))
            return (values if in_order else values[rows]).astype(np.float32)
        unique, inverse = np.unique(rows, return_inverse=True)
        return self._read_values(unique)[inverse].astype(np.float32)

    def read_block(self, start: int, stop: int) -> np.ndarray:
        """Return the values (stop - start, L, D) of consecutive rows of a pooled store, as stored, by one read."""
        return self._read_values(slice(start, stop))

    def frames(self, clip: str) -> np.ndarray:
        """Return the frames of one clip as stored: (T, ...) or (L, T, D)."""
        self._check_frames()
        row = self.index[clip] if clip in self.index else int(self.rows([clip])[0])
        return self._read_values(self._frames_of(row))

    def all_frames(self, clips: Iterable[str] | None = None) -> list[np.ndarray]:
        """Return the frames of several clips (default: all) as stored, in their order; views of one array."""
        self._check_frames()
        names = self.ids if clips is None else list(clips)
        rows = self.rows(names)
        if len(rows) * 4 < len(self.ids):
            return [self.frames(clip) for clip in names]
        values = self._read_values(slice(None))
        return [values[self._frames_of(row)] for row in rows.tolist()]

    def read_frame_block(self, start: int, stop: int) -> list[np.ndarray]:
        """Return the frames (T, D) of consecutive rows of a store of one layer, as stored, by one read; views of it."""
        first, ends = int(self._offset[start]), self._offset[start:stop] + self._length[start:stop]
        values = self._read_values(slice(first, int(ends[-1])))
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
        with _explained(self.path):
            return read_media_stats(self._file)

    def digests(self) -> dict[str, str]:
        """Return, by clip id, the digest of the text or the media that the features were made from."""
        return {clip: digest_of_signature(signature) for clip, signature in self.signatures().items()}

    def signatures(self) -> dict[str, str]:
        """Return, by clip id, the digest with the stamp of the file, by which a change is noticed without reading."""
        with _explained(self.path):
            return dict(zip(self.ids, read_strings(self._file["clips/digest"]), strict=True))

    def failures(self) -> list[Failure]:
        """Return the clips without features, with their reasons."""
        with _explained(self.path):
            return read_failures(self._file)

    def validate(self) -> list[str]:
        """Return the faults of the content, for people; an intact store has none. It reads all values."""
        faults = []
        both = set(self.ids) & {failure.clip for failure in self.failures()}
        if both:
            faults.append(f"{len(both)} clips have features and a failure")
        if not self._all_finite():
            faults.append("values hold NaN or infinity")
        return faults

    def _all_finite(self, block_values: int = 1 << 22) -> bool:
        """Return True if there is no NaN or infinity; read in blocks along the longer of the first two axes."""
        values = self._file["values"]
        if not np.issubdtype(values.dtype, np.floating) or values.size == 0:
            return True
        axis = 1 if values.ndim > 2 and values.shape[1] > values.shape[0] else 0
        step = max(1, block_values * values.shape[axis] // values.size)
        blocks = (slice(start, start + step) for start in range(0, values.shape[axis], step))
        return all(
            bool(np.isfinite(self._read_values((slice(None), block) if axis else block)).all()) for block in blocks
        )

    def _check_frames(self) -> None:
        if self.pooled:
            raise MertoolError(f"{self.path} is pooled; a frame store (--pool none) is needed here")

    def _frames_of(self, row: int) -> Any:
        """Return the selection of a clip's frames among the values."""
        frames = slice(int(self._offset[row]), int(self._offset[row] + self._length[row]))
        return (slice(None), frames) if len(self.layers) > 1 else frames

    def _read_values(self, selection: Any) -> np.ndarray:
        with _explained(self.path):
            return self._file["values"][selection]


def validate_store(path: Path) -> list[str]:
    """Return the faults of the store at `path`, for people; none for an intact one. It reads the whole file."""
    damage = find_damage(path) if path.is_file() else None
    # The bytes come first, because HDF5 may abort the process on a damaged file.
    if damage and is_sealed(path):
        return [damage]
    try:
        with FeatureStore(path) as store:
            return [damage] if damage else store.validate()
    except MertoolError as error:
        return [str(error)]


def read_header(file: h5py.File) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe and the provenance of a store or a part.

    Raises MertoolError for another schema, and KeyError, TypeError or ValueError for what is no store.
    """
    schema = _read_attribute(file, "schema")
    if schema != SCHEMA:
        raise MertoolError(
            f"{file.filename} has store schema {schema}; this version reads {SCHEMA}: extract it again with "
            "--overwrite, or remove it"
        )
    recipe = Recipe.from_json(parse_json(_read_attribute(file, "recipe")))
    if _read_attribute(file, "fingerprint") != recipe.fingerprint:
        raise ValueError("the fingerprint does not belong to the recipe")
    provenance = parse_json(_read_attribute(file, "origin"))
    if not isinstance(provenance, dict):
        raise ValueError("its origin is no JSON object")
    return recipe, provenance


def _read_attribute(file: h5py.File, name: str) -> Any:
    attribute = file.attrs.get_id(name)
    # A number, or a pointer to a string: of more, h5py would take the memory before it reads.
    if attribute.shape != () or attribute.get_storage_size() > 16:
        raise ValueError(f"the attribute {name} is not a single value")
    return file.attrs[name]


def _open(path: Path) -> h5py.File:
    if not path.exists():
        unfinished = parts_folder(path)
        hint = f"; {unfinished} holds an unfinished extraction: run it again" if unfinished.exists() else ""
        raise MertoolError(f"store {path} does not exist{hint}. `mertool extract` makes stores")
    if path.is_dir():
        raise MertoolError(f"{path} is a folder: give the path of a store (.h5)")
    return open_hdf5(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of HDF5, or a fault of the content, into a MertoolError of one line that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, AttributeError) as error:
        raise MertoolError(f"{path} is not a feature store of mertool ({first_line(error)})") from error
    except MemoryError as error:
        raise MertoolError(f"{path} does not fit into the memory of this machine ({first_line(error)})") from error

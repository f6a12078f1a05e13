"""`StoreWriter`: filling a store so that no kill and no full disk can tear it."""

import glob
import io
import json
import shutil
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from filelock import FileLock, Timeout

from mertool.errors import MertoolError
from mertool.features import Recipe
from mertool.files import check_writable, explain_write_errors, make_folder, write_atomic
from mertool.store.layout import (
    ClipFeatures,
    Failure,
    parts_folder,
    read_clips,
    read_failures,
    write_tables,
)
from mertool.store.merge import merge_files
from mertool.store.reader import FeatureStore

PART_BYTES = 64 << 20
PART_CLIPS = 256
PART_SECONDS = 60.0


def check_store(path: Path, recipe: Recipe, overwrite: bool = False) -> None:
    """Raise MertoolError if what is at `path` would not be continued or replaced: no store, or another recipe's."""
    if not path.exists():
        return
    if not h5py.is_hdf5(path) and (path.stat().st_size or not overwrite):
        raise MertoolError(f"{path} exists and is not a feature store: give another -o, or remove it")
    if overwrite:
        return
    with FeatureStore(path) as old:
        if old.fingerprint != recipe.fingerprint:
            raise MertoolError(
                f"{path} was made by another recipe ({recipe.differences(old.recipe)}): "
                "give another -o, or --overwrite to build it anew"
            )


class StoreBusy(MertoolError):
    """Another process holds the store."""


class PartWriter:
    """Takes features clip by clip and writes them in parts, each whole: to a temporary name, flushed, renamed.

    Several may write parts of one store at a time; a `StoreWriter` joins them.
    """

    def __init__(self, path: Path, recipe: Recipe, origin: dict[str, Any]):
        self.path, self.recipe, self.provenance = path, recipe, origin
        self.parts = parts_folder(path)
        self.dtype = np.dtype("uint8" if recipe.modality == "faces" else recipe.storage_dtype)
        self.frames = recipe.pool == "none"
        self._features: list[ClipFeatures] = []
        self._failures: list[Failure] = []
        self._bytes, self._since = 0, time.monotonic()
        self._dirty = False

    def add(self, features: ClipFeatures) -> None:
        """Take one clip's features; they are on the disk after the next flush."""
        values = features.values
        with np.errstate(over="ignore"):  # answered below, in words
            stored = values.astype(self.dtype, copy=False)
        if self.dtype == np.float16 and not np.isfinite(stored).all():
            raise MertoolError(
                f"clip '{features.clip}': a value of {np.abs(values).max():.3g} does not fit float16: "
                "run again with --storage float32"
            )
        self._features.append(replace(features, values=stored))
        self._bytes += stored.nbytes
        self._flush_when_due()

    def fail(self, failure: Failure) -> None:
        """Record a clip that has no features."""
        self._failures.append(failure)
        self._flush_when_due()

    def flush(self) -> None:
        """Write what was taken since the last flush as one part."""
        if self._features or self._failures:
            content = io.BytesIO()
            with h5py.File(content, "w") as file:
                write_tables(file, self.recipe, self.provenance, self._features, self._failures)
                values = [f.values for f in self._features]
                axis = 1 if self.frames and len(self.recipe.layer_axis) > 1 else 0
                if values:
                    joined = np.concatenate(values, axis) if self.frames else np.stack(values)
                    file["values"] = joined
                if self.frames:
                    file["length"] = np.array([v.shape[axis] for v in values], np.int64)
            # The number keeps parts in the order of writing; the newest row of a clip wins.
            name = f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.h5"
            write_atomic(self.parts / name, content.getvalue())
            self._features, self._failures, self._bytes, self._dirty = [], [], 0, True
        self._since = time.monotonic()

    def _flush_when_due(self) -> None:
        count = len(self._features) + len(self._failures)
        if self._bytes >= PART_BYTES or count >= PART_CLIPS or time.monotonic() - self._since >= PART_SECONDS:
            self.flush()


class StoreWriter(PartWriter):
    """Fills a store part by part; safe against SIGKILL at any moment. Use as a context manager.

    Opening it resumes: finished parts of a killed run and the clips of an existing store of the same
    recipe count as done (`done` maps clip to media digest). A store of another recipe is refused, unless
    `overwrite`. One writer at a time may hold a store.
    """

    def __init__(self, path: Path, recipe: Recipe, origin: dict[str, Any], overwrite: bool = False):
        super().__init__(path, recipe, origin)
        self.done: dict[str, str] = {}
        self.failed: dict[str, Failure] = {}
        self._keep_old = False
        check_writable(path)
        check_store(path, recipe, overwrite)
        make_folder(self.parts)
        self._lock = _lock(self.parts / "lock", path)
        merges = path.parent.glob(f".{glob.escape(path.name)}.tmp-*")
        for leftover in [*self.parts.glob(".part-*.tmp-*"), *merges]:
            leftover.unlink(missing_ok=True)
        try:
            self._read_progress(overwrite)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            with suppress(MertoolError):  # an interrupted run keeps the part at hand, if the disk allows
                self.flush()
        self._lock.release()
        if not any(self.parts.glob("part-*.h5")):
            shutil.rmtree(self.parts, ignore_errors=True)

    def add(self, features: ClipFeatures) -> None:
        super().add(features)
        self.done[features.clip] = features.digest
        self.failed.pop(features.clip, None)

    def fail(self, failure: Failure) -> None:
        super().fail(failure)
        self.failed[failure.clip] = failure
        self.done.pop(failure.clip, None)

    def read_parts(self) -> None:
        """Take note of parts that others wrote."""
        self._note_parts(overwrite=False)

    def finish(self, order: Iterable[str]) -> None:
        """Merge parts and the old store into one new file: clips of `order` first, then the others."""
        self.flush()
        if not self._dirty:
            return
        sources = ([self.path] if self._keep_old else []) + sorted(self.parts.glob("part-*.h5"))
        merge_files(sources, self.path, self.recipe, self.provenance, order)
        for part in self.parts.glob("part-*.h5"):
            part.unlink()
        self._dirty, self._keep_old = False, True

    def _read_progress(self, overwrite: bool) -> None:
        self._keep_old = self.path.exists() and not overwrite
        if self._keep_old:
            with h5py.File(self.path, "r") as file:
                self._note_progress(file)
        self._note_parts(overwrite)

    def _note_parts(self, overwrite: bool) -> None:
        for part in sorted(self.parts.glob("part-*.h5")):
            with h5py.File(part, "r") as file:
                if fits := file.attrs["fingerprint"] == self.recipe.fingerprint:
                    self._note_progress(file)
                    self._dirty = True
                elif not overwrite:
                    other = Recipe.from_json(json.loads(file.attrs["recipe"]))
                    raise MertoolError(
                        f"{self.parts} holds an unfinished extraction by another recipe "
                        f"({self.recipe.differences(other)}): finish it with its own options, give another "
                        "-o, or --overwrite to start anew"
                    )
            if not fits:
                part.unlink()

    def _note_progress(self, file: h5py.File) -> None:
        for clip in read_clips(file):
            self.done[clip.clip] = clip.digest
            self.failed.pop(clip.clip, None)
        for failure in read_failures(file):
            self.failed[failure.clip] = failure
            self.done.pop(failure.clip, None)


def _lock(path: Path, store: Path) -> FileLock:
    lock = FileLock(path)
    with explain_write_errors(path):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreBusy(f"another extraction is writing {store}: wait for it to end, or give another -o") from error
    return lock

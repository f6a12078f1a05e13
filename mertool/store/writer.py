"""`StoreWriter`: writing a store so that neither a kill nor a full disk can damage it."""

import errno
import io
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
from mertool.store.hdf5 import create_hdf5, open_hdf5, seal
from mertool.store.layout import ClipFeatures, Failure, parts_folder, read_clips, read_failures, write_tables
from mertool.store.merge import merge_files, require_intact
from mertool.store.parts import LOCK, PART_PATTERN, remove_temporary_files, set_aside_foreign_files
from mertool.store.precision import as_stored
from mertool.store.reader import FeatureStore, read_header

# A part file is written as soon as one of these is reached: a killed run loses no more.
PART_BYTES = 64 << 20
PART_CLIPS = 256
PART_SECONDS = 60.0


def check_store(path: Path, recipe: Recipe, *, overwrite: bool = False) -> None:
    """Raise MertoolError if the file at `path` would be neither resumed nor replaced.

    That is a file that is no store, and without `overwrite` a store of another recipe.
    """
    if not path.exists():
        return
    if not path.is_file() or (not h5py.is_hdf5(path) and (path.stat().st_size or not overwrite)):
        raise MertoolError(f"{path} exists and is not a feature store: give another -o, or remove it")
    if overwrite:
        return
    with FeatureStore(path) as existing:
        if existing.fingerprint != recipe.fingerprint:
            raise MertoolError(
                f"{path} was made by another recipe ({recipe.differences(existing.recipe)}): "
                "give another -o, or --overwrite to build it anew"
            )


class StoreBusy(MertoolError):
    """Another process holds the store."""


class PartWriter:
    """Collects the features of clips and writes them to part files.

    Several processes may write part files of one store at a time; a `StoreWriter` merges them.

    Attributes:
        path: The store that the part files belong to.
        recipe: Recipe of the store.
        provenance: Provenance that is stored with the recipe.
        parts: Folder of the part files.
        dtype: Number format of the recipe; clips that do not fit float16 are written in float32.
    """

    def __init__(self, path: Path, recipe: Recipe, provenance: dict[str, Any]):
        self.path, self.recipe, self.provenance = path, recipe, provenance
        self.parts = parts_folder(path)
        self.dtype = np.dtype("uint8" if recipe.modality == "faces" else recipe.storage_dtype)
        self._features: list[ClipFeatures] = []
        self._failures: list[Failure] = []
        self._n_bytes, self._last_flush = 0, time.monotonic()
        self._unmerged = False

    def add(self, features: ClipFeatures) -> None:
        """Collect the features of one clip, which must be finite; they are on the disk after the next flush."""
        stored = as_stored(features.values, self.dtype)
        self._features.append(replace(features, values=stored))
        self._n_bytes += stored.nbytes
        self._flush_if_due()

    def fail(self, failure: Failure) -> None:
        """Record a clip that has no features."""
        self._failures.append(failure)
        self._flush_if_due()

    def flush(self) -> None:
        """Write everything collected since the last flush to a part file."""
        if self._features or self._failures:
            # Nanoseconds keep part files in the order of writing, since the last row of a clip counts; the random
            # suffix keeps processes apart.
            name = f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.h5"
            # In memory first: HDF5 aborts the process if a write of its own fails.
            write_atomic(self.parts / name, self._serialize())
            self._features, self._failures, self._n_bytes, self._unmerged = [], [], 0, True
        self._last_flush = time.monotonic()

    def _serialize(self) -> bytes:
        content = io.BytesIO()
        with create_hdf5(content) as file:
            write_tables(
                file,
                recipe=self.recipe,
                provenance=self.provenance,
                clips=self._features,
                failures=self._failures,
            )
            values = [features.values for features in self._features]
            if self.recipe.pool == "none":
                time_axis = 1 if len(self.recipe.layer_axis) > 1 else 0
                file["length"] = np.array([frames.shape[time_axis] for frames in values], np.int64)
                if values:
                    file["values"] = np.concatenate(values, time_axis)
            elif values:
                file["values"] = np.stack(values)
        seal(content)
        return content.getvalue()

    def _flush_if_due(self) -> None:
        count = len(self._features) + len(self._failures)
        elapsed = time.monotonic() - self._last_flush
        if self._n_bytes >= PART_BYTES or count >= PART_CLIPS or elapsed >= PART_SECONDS:
            self.flush()


class StoreWriter(PartWriter):
    """Writes a store part by part; SIGKILL at any moment loses at most the part at hand. Use it as a context manager.

    Entering resumes: clips in part files of a killed run, and in an existing store of the same recipe, count as done.
    It raises MertoolError for a store of another recipe, unless `overwrite`, and StoreBusy if another process holds
    the store. Files among the part files that are no parts, and damaged parts, are set aside; a warning says where.

    Attributes:
        done: Media digest of each clip that has features.
        failed: Failure of each clip that has none.
    """

    def __init__(self, path: Path, recipe: Recipe, provenance: dict[str, Any], *, overwrite: bool = False):
        super().__init__(path, recipe, provenance)
        self.overwrite = overwrite
        self.done: dict[str, str] = {}
        self.failed: dict[str, Failure] = {}
        self._merge_existing = False

    def __enter__(self) -> "StoreWriter":
        check_writable(self.path)
        check_store(self.path, self.recipe, overwrite=self.overwrite)
        make_folder(self.parts)  # the lock file lies in it
        self._lock = _acquire_lock(self.parts / LOCK, self.path)
        try:
            remove_temporary_files(self.path)
            self._merge_existing = self.path.exists() and not self.overwrite
            if self._merge_existing:
                with open_hdf5(self.path) as file:
                    self._record_progress(file)
            self._read_parts(drop_other_recipes=self.overwrite)
        except BaseException:
            # The traceback of a caller may keep this object alive, and with it the lock.
            self._lock.release()
            raise
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            with suppress(MertoolError):  # an interrupted run keeps the part at hand, if the disk allows
                self.flush()
        self._lock.release()
        # Never anything else, whoever put it there; another process may just remove the folder.
        with suppress(OSError):
            if {entry.name for entry in self.parts.iterdir()} <= {LOCK}:
                shutil.rmtree(self.parts)

    def add(self, features: ClipFeatures) -> None:
        super().add(features)
        self.done[features.clip] = features.digest
        self.failed.pop(features.clip, None)

    def fail(self, failure: Failure) -> None:
        super().fail(failure)
        self.failed[failure.clip] = failure
        self.done.pop(failure.clip, None)

    def read_parts(self) -> None:
        """Update `done` and `failed` by the part files that other processes wrote."""
        self._read_parts(drop_other_recipes=False)

    def finish(self, order: Iterable[str]) -> None:
        """Merge part files and the existing store into a new file: clips of `order` first, then the others."""
        self.flush()
        if not self._unmerged:
            return
        if self._merge_existing:
            require_intact(self.path)
        part_files = sorted(self.parts.glob(PART_PATTERN))
        # The existing store comes first: of a clip in several files the last one counts.
        sources = ([self.path] if self._merge_existing else []) + part_files
        merge_files(sources, self.path, recipe=self.recipe, provenance=self.provenance, order=order)
        # Only after the rename: a run that is killed here merges the same part files again, which changes nothing.
        for part_file in part_files:
            part_file.unlink()
        self._unmerged, self._merge_existing = False, True

    def _read_parts(self, *, drop_other_recipes: bool) -> None:
        set_aside_foreign_files(self.path)
        for part_file in sorted(self.parts.glob(PART_PATTERN)):
            with open_hdf5(part_file) as file:
                recipe, _ = read_header(file)
                if recipe == self.recipe:
                    self._record_progress(file)
                    self._unmerged = True
                    continue
            if not drop_other_recipes:
                raise MertoolError(
                    f"{self.parts} holds an unfinished extraction by another recipe "
                    f"({self.recipe.differences(recipe)}): finish it with its own options, give another "
                    "-o, or --overwrite to start anew"
                )
            part_file.unlink()

    def _record_progress(self, file: h5py.File) -> None:
        for clip in read_clips(file):
            self.done[clip.clip] = clip.digest
            self.failed.pop(clip.clip, None)
        for failure in read_failures(file):
            self.failed[failure.clip] = failure
            self.done.pop(failure.clip, None)


def _acquire_lock(path: Path, store: Path) -> FileLock:
    """Lock the store: two writers would merge and remove the part files of each other.

    It is a lock of the operating system, which ends with the process, so a killed run leaves no stale one.
    """
    # A lock that is only a file would stay behind when the process is killed.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreBusy(f"another extraction is writing {store}: wait for it to end, or give another -o") from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            with explain_write_errors(path):
                raise
        raise MertoolError(
            f"cannot lock {path} ({error.strerror}): the file system may have no file locks. Give an -o on a local "
            "disk, and copy the store afterwards"
        ) from error
    return lock

"""Merging part files or stores of one recipe into one file, and writing a small store at once."""

import io
import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mertool.errors import MertoolError, MertoolWarning
from mertool.features import Recipe
from mertool.files import explain_write_errors, fsync, write_atomic
from mertool.store.hdf5 import create_hdf5, find_damage, open_hdf5, seal
from mertool.store.layout import ClipFeatures, Failure, read_clips, read_failures, write_tables
from mertool.store.precision import LARGEST_FLOAT16, as_stored, widest_dtype
from mertool.store.reader import FeatureStore

BLOCK_CLIPS = 256  # clips copied at a time
SHARD_NAME = re.compile(r".*\.(?P<number>\d+)-of-(?P<count>\d+)\.[^.]+")


@dataclass(frozen=True, kw_only=True)
class _StoredClip:
    """A clip of one of the source files.

    Attributes:
        clip: Its row of the table of clips, without values.
        source: Index of the source file.
        row: Row in that file.
        frames: Its frames there; of a pooled store an empty slice.
    """

    clip: ClipFeatures
    source: int
    row: int
    frames: slice


@dataclass(frozen=True)
class _ValuesLayout:
    """Shape and type of a dataset `values`; of the merged one, all but the number of clips or frames is the same."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def size_as(self, dtype: np.dtype) -> int:
        """Return the bytes of the values in another number format."""
        return math.prod(self.shape) * dtype.itemsize


def merge_files(
    sources: Sequence[Path], target: Path, *, recipe: Recipe, provenance: dict[str, Any], order: Iterable[str]
) -> None:
    """Merge `sources` into `target`, atomically; if a clip is in several, the last one counts.

    Clips of `order` come first, in that order. Memory holds the tables of clips and one block of values. Raises
    MertoolError if the disk is full. If the recipe says float16 and a source is in float32, the target is, too, and a
    MertoolWarning says so.
    """
    records: dict[str, _StoredClip | Failure] = {}
    layouts: list[_ValuesLayout] = []
    for number, source in enumerate(sources):
        with open_hdf5(source) as file:
            records |= {stored.clip.clip: stored for stored in _stored_clips(file, number)}
            records |= {failure.clip: failure for failure in read_failures(file)}
            if "values" in file and file["values"].size:
                layouts.append(_ValuesLayout(file["values"].shape, file["values"].dtype))
    recipe_dtype = np.dtype(recipe.storage_dtype)
    dtype = widest_dtype([stored.dtype for stored in layouts], recipe_dtype)
    layout = _ValuesLayout(layouts[-1].shape if layouts else (0,), dtype)
    ids = dict.fromkeys([clip for clip in order if clip in records] + list(records))
    clips = [record for clip in ids if isinstance(record := records[clip], _StoredClip)]
    failures = [record for clip in ids if isinstance(record := records[clip], Failure)]
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        with explain_write_errors(target):
            widened = sum(stored.size_as(dtype) - stored.size_as(stored.dtype) for stored in layouts)
            _reserve(temporary, sum(source.stat().st_size for source in sources) + widened)
            with create_hdf5(temporary) as out:
                write_tables(
                    out,
                    recipe=recipe,
                    provenance=provenance,
                    clips=[stored.clip for stored in clips],
                    failures=failures,
                )
                if recipe.pool == "none":
                    _copy_frames(sources, clips, out, layout=layout, layered=len(recipe.layer_axis) > 1)
                else:
                    _copy_pooled(sources, clips, out, layout=layout, layers=len(recipe.layer_axis))
            with open(temporary, "r+b") as content:
                seal(content)
            # The content must be on the disk before the name is: after a power failure the name would else show a
            # file of zeros. A rename within one folder is atomic, so a reader sees the old store or the new one.
            fsync(temporary)
            os.replace(temporary, target)
            fsync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
    if dtype != recipe_dtype:
        message = (
            f"{target} holds values beyond {LARGEST_FLOAT16:,.0f}, the largest number of {recipe_dtype}, so it is "
            f"stored in {dtype}, which takes twice the space"
        )
        warnings.warn(message, MertoolWarning, stacklevel=2)


def merge_stores(paths: Sequence[Path], target: Path) -> int:
    """Merge finished stores of one recipe and return the number of clips.

    Raises MertoolError for another recipe, for a damaged store, or if the stores are named as shards and some are
    missing.
    """
    _check_shards(paths)
    for path in paths:
        require_intact(path)
    with FeatureStore(paths[0]) as first:
        recipe, provenance = first.recipe, first.provenance
    for path in paths[1:]:
        with FeatureStore(path) as store:
            if store.fingerprint != recipe.fingerprint:
                raise MertoolError(
                    f"{path} and {paths[0]} cannot be merged, their recipes differ: {recipe.differences(store.recipe)}"
                )
    merge_files(paths, target, recipe=recipe, provenance=provenance, order=[])
    with FeatureStore(target) as merged:
        return len(merged)


def write_store(
    path: Path,
    recipe: Recipe,
    provenance: dict[str, Any],
    *,
    features: Sequence[ClipFeatures],
    failures: Iterable[Failure] = (),
) -> None:
    """Write a pooled store at once, from features in memory."""
    content = io.BytesIO()
    with create_hdf5(content) as file:
        write_tables(file, recipe=recipe, provenance=provenance, clips=features, failures=list(failures))
        file["values"] = np.stack([as_stored(clip.values, np.dtype(recipe.storage_dtype)) for clip in features])
    seal(content)
    write_atomic(path, content.getvalue())


def require_intact(path: Path) -> None:
    """Raise MertoolError if a store is damaged: merged into a new file, its values would get a valid digest."""
    with FeatureStore(path):  # says more of a file that is no store at all
        damage = find_damage(path)
    if damage:
        raise MertoolError(f"{path} is damaged ({damage}): remove it, and extract it again")


def _check_shards(paths: Sequence[Path]) -> None:
    """Raise MertoolError if stores named as shards are incomplete: a job of the array may have failed."""
    shards = [match for path in paths if (match := SHARD_NAME.fullmatch(path.name))]
    if len(shards) < len(paths) or len({match["count"] for match in shards}) > 1:
        return
    count = int(shards[0]["count"])
    missing = sorted(set(range(1, count + 1)) - {int(match["number"]) for match in shards})
    if missing:
        raise MertoolError(
            f"{len(missing)} of {count} shards are missing (first: {missing[0]}): run it with --shard "
            f"{missing[0]}/{count}; to merge an incomplete set, give those stores other names"
        )


def _stored_clips(file: h5py.File, source: int) -> list[_StoredClip]:
    clips = read_clips(file)
    # Part files hold lengths without offsets; clips lie end to end in both.
    lengths = file["length"][:] if "length" in file else np.zeros(len(clips), np.int64)
    ends = np.cumsum(lengths)
    return [
        _StoredClip(clip=clip, source=source, row=row, frames=slice(int(ends[row] - lengths[row]), int(ends[row])))
        for row, clip in enumerate(clips)
    ]


def _reserve(path: Path, size: int) -> None:
    """Allocate `size` bytes, so that a full disk raises OSError now: HDF5 aborts the process if its own write fails."""
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        else:
            file.write(bytes(size))


def _copy_pooled(
    sources: Sequence[Path], clips: Sequence[_StoredClip], out: h5py.File, *, layout: _ValuesLayout, layers: int
) -> None:
    values = out.create_dataset("values", (len(clips), layers, layout.shape[-1]), layout.dtype)
    for number, source in enumerate(sources):
        new_row_of = {clip.row: new_row for new_row, clip in enumerate(clips) if clip.source == number}
        if not new_row_of:
            continue
        with open_hdf5(source) as file:
            for start in range(0, file["values"].shape[0], BLOCK_CLIPS):
                for row, clip_values in enumerate(file["values"][start : start + BLOCK_CLIPS], start):
                    if row in new_row_of:
                        values[new_row_of[row]] = clip_values


def _copy_frames(
    sources: Sequence[Path], clips: Sequence[_StoredClip], out: h5py.File, *, layout: _ValuesLayout, layered: bool
) -> None:
    """Copy the frames of all clips, end to end in the order of `clips`."""
    lengths = np.array([clip.frames.stop - clip.frames.start for clip in clips], np.int64)
    ends = np.cumsum(lengths)
    out["length"], out["offset"] = lengths, ends - lengths
    total = int(lengths.sum())
    # Of no clips the layout is unknown, and has no layers axis.
    has_layers = layered and len(layout.shape) > 2
    shape = (layout.shape[0], total, *layout.shape[2:]) if has_layers else (total, *layout.shape[1:])
    values = out.create_dataset("values", shape, layout.dtype)
    for number, source in enumerate(sources):
        with open_hdf5(source) as file:
            for clip, end in zip(clips, ends.tolist(), strict=True):
                if clip.source != number:
                    continue
                new_frames = slice(end - (clip.frames.stop - clip.frames.start), end)
                if layered:
                    values[:, new_frames] = file["values"][:, clip.frames]
                else:
                    values[new_frames] = file["values"][clip.frames]

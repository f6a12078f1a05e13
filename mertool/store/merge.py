"""Joining parts or stores of one recipe into one file, and writing a small store in one go."""

import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mertool.errors import MertoolError
from mertool.features import Recipe
from mertool.files import explain_write_errors, fsync, write_atomic
from mertool.store.layout import ClipFeatures, Failure, read_clips, read_failures, write_tables
from mertool.store.reader import FeatureStore

BLOCK = 256  # clips copied at a time
SHARD = re.compile(r".*\.(?P<number>\d+)-of-(?P<count>\d+)\.[^.]+")


@dataclass(frozen=True)
class _Row:
    """Where the features of one clip lie: which source, which row there, which frames."""

    clip: ClipFeatures
    source: int
    row: int
    offset: int = 0
    length: int = 0


def merge_files(
    sources: list[Path], target: Path, recipe: Recipe, origin: dict[str, Any], order: Iterable[str]
) -> None:
    """Join `sources` into `target`, atomically. Of a clip that stands in several, the last wins.

    Clips of `order` come first, in that order. Memory holds the table of clips and one block of values.
    """
    place: dict[str, _Row | Failure] = {}
    layout: tuple[tuple[int, ...], np.dtype] = ((0,), np.dtype(recipe.storage_dtype))
    for number, source in enumerate(sources):
        with h5py.File(source, "r") as file:
            place |= {row.clip.clip: row for row in _rows_of(file, number)}
            place |= {failure.clip: failure for failure in read_failures(file)}
            if "values" in file and file["values"].size:
                layout = (file["values"].shape, file["values"].dtype)
    ids = dict.fromkeys([clip for clip in order if clip in place] + list(place))
    rows = [at for at in (place[clip] for clip in ids) if isinstance(at, _Row)]
    failures = [at for at in (place[clip] for clip in ids) if isinstance(at, Failure)]
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        with explain_write_errors(target):
            _reserve(temporary, sum(source.stat().st_size for source in sources))
            with h5py.File(temporary, "w") as out:
                write_tables(out, recipe, origin, [row.clip for row in rows], failures)
                if recipe.pool == "none":
                    _copy_frames(sources, rows, out, layout, len(recipe.layer_axis) > 1)
                else:
                    _copy_pooled(sources, rows, out, layout, len(recipe.layer_axis))
            fsync(temporary)
            os.replace(temporary, target)
            fsync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def merge_stores(paths: list[Path], target: Path) -> int:
    """Join finished stores of one recipe; returns the number of clips. Another recipe is refused."""
    _refuse_missing_shards(paths)
    with FeatureStore(paths[0]) as first:
        recipe, origin = first.recipe, first.provenance
    for path in paths[1:]:
        with FeatureStore(path) as other:
            if other.fingerprint != recipe.fingerprint:
                raise MertoolError(
                    f"{path} and {paths[0]} cannot be merged, their recipes differ: {recipe.differences(other.recipe)}"
                )
    merge_files(paths, target, recipe, origin, [])
    with FeatureStore(target) as merged:
        return len(merged)


def _refuse_missing_shards(paths: list[Path]) -> None:
    """Raise MertoolError if stores named as shards are not all there: a job of the array may have failed."""
    named = [match for path in paths if (match := SHARD.fullmatch(path.name))]
    if len(named) < len(paths) or len({match["count"] for match in named}) > 1:
        return
    count = int(named[0]["count"])
    missing = sorted(set(range(1, count + 1)) - {int(match["number"]) for match in named})
    if missing:
        raise MertoolError(
            f"{len(missing)} of {count} shards are missing (first: {missing[0]}): run it with --shard "
            f"{missing[0]}/{count}; to join some of them all the same, give those stores other names"
        )


def write_store(
    path: Path,
    recipe: Recipe,
    origin: dict[str, Any],
    features: list[ClipFeatures],
    failures: Iterable[Failure] = (),
) -> None:
    """Write a pooled store in one go, for features that are computed rather than extracted."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        write_tables(file, recipe, origin, features, list(failures))
        file["values"] = np.stack([row.values for row in features]).astype(recipe.storage_dtype)
    write_atomic(path, content.getvalue())


def _rows_of(file: h5py.File, number: int) -> list[_Row]:
    clips = read_clips(file)
    if "length" not in file:
        return [_Row(clip, number, row) for row, clip in enumerate(clips)]
    length = file["length"][:]
    offset = np.cumsum(length) - length
    return [_Row(clip, number, row, int(offset[row]), int(length[row])) for row, clip in enumerate(clips)]


def _reserve(path: Path, size: int) -> None:
    """Raise OSError now if `size` bytes do not fit: HDF5 ends the process when a write of its own fails."""
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        else:
            file.write(bytes(size))


def _copy_pooled(
    sources: list[Path],
    rows: list[_Row],
    out: h5py.File,
    layout: tuple[tuple[int, ...], np.dtype],
    layers: int,
) -> None:
    shape, dtype = layout
    values = out.create_dataset("values", (len(rows), layers, shape[-1]), dtype)
    for number, source in enumerate(sources):
        new_of = {row.row: new for new, row in enumerate(rows) if row.source == number}
        if not new_of:
            continue
        with h5py.File(source, "r") as file:
            for start in range(0, file["values"].shape[0], BLOCK):
                for at, block in enumerate(file["values"][start : start + BLOCK], start):
                    if at in new_of:
                        values[new_of[at]] = block


def _copy_frames(
    sources: list[Path],
    rows: list[_Row],
    out: h5py.File,
    layout: tuple[tuple[int, ...], np.dtype],
    layered: bool,
) -> None:
    """Frames stand end to end in the order of `rows`."""
    shape, dtype = layout
    length = np.array([row.length for row in rows], np.int64)
    offset = np.cumsum(length) - length
    out["length"], out["offset"] = length, offset
    total = int(length.sum())
    full = (shape[0], total, *shape[2:]) if layered and len(shape) > 2 else (total, *shape[1:])
    values = out.create_dataset("values", full, dtype)
    for number, source in enumerate(sources):
        with h5py.File(source, "r") as file:
            for row, at in zip(rows, offset.tolist(), strict=True):
                if row.source != number:
                    continue
                there, here = slice(row.offset, row.offset + row.length), slice(at, at + row.length)
                if layered:
                    values[:, here] = file["values"][:, there]
                else:
                    values[here] = file["values"][there]

"""Checks of a store's structure: every object is the documented one, in the file itself, and as large as it says.

HDF5 can hold links to other files, values in other files or computed from them, cycles, and filters that are loaded
from libraries. Nothing of that is in a store, so all of it is refused before a value is read.
"""

import math
from collections.abc import Collection
from itertools import islice

import h5py
import numpy as np

from mertool.features import Recipe
from mertool.store.layout import FAILURE_COLUMNS, MEDIA_STATS, STRING
from mertool.store.precision import valid_dtypes

MAX_CHANNELS = 1 << 20
MAX_FRAMES = 1 << 24  # of one clip; 24 hours of video at 50 frames per second have 4.3 million
FRAME_INDEX = {"length": np.dtype(np.int64), "offset": np.dtype(np.int64)}


def check_structure(file: h5py.File, recipe: Recipe, *, is_part: bool = False) -> None:
    """Raise ValueError if a file is not a store of this recipe, or not a part of one. No values are read.

    A part has no values if all its clips failed, and needs no offsets.
    """
    index = FRAME_INDEX if recipe.pool == "none" else {}
    names = {"clips", "failures", "values", *index}
    optional = names & {"values", "offset"} if is_part else set()
    _check_names(file, names - optional, optional)
    index = {name: dtype for name, dtype in index.items() if name in file}
    columns = {"id": STRING, "digest": STRING, **{name: np.dtype(dtype) for name, dtype in MEDIA_STATS.items()}}
    table = file["clips"]
    if not isinstance(table, h5py.Group):
        raise ValueError("clips is not a group")
    _check_names(table, columns)
    for name, dtype in columns.items():
        _check_dataset(table[name], name=f"clips/{name}", dtype=dtype, n_axes=1)
    for name, dtype in index.items():
        _check_dataset(file[name], name=name, dtype=dtype, n_axes=1)
    _check_dataset(file["failures"], name="failures", dtype=FAILURE_COLUMNS, n_axes=1)
    sizes = {len(table[name]) for name in columns} | {len(file[name]) for name in index}
    if len(sizes) > 1:
        raise ValueError(
            f"clips and their columns have different numbers of rows: {', '.join(map(str, sorted(sizes)))}"
        )
    if "values" in file:
        _check_values(file, recipe, n_clips=sizes.pop())


def _check_names(group: h5py.Group, required: Collection[str], optional: Collection[str] = ()) -> None:
    """Raise ValueError unless a group holds these objects and no others, none of them by a link to elsewhere."""
    names = set(islice(group, len(required) + len(optional) + 1))
    if missing := sorted(set(required) - names):
        raise ValueError(f"{', '.join(missing)} is missing")
    if unknown := sorted(names - set(required) - set(optional)):
        raise ValueError(f"it holds {unknown[0][:80]!r}, which no store has")
    for name in names:
        # An external link would be followed into any file of this machine.
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link to another place")


def _check_dataset(dataset: object, *, name: str, dtype: np.dtype, n_axes: int) -> None:
    """Raise ValueError unless a dataset has this type and its values lie in the file, one after the other."""
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is not a dataset")
    storage = dataset.id.get_create_plist()
    # Filters need chunks and virtual datasets have a layout of their own, so this refuses both.
    if storage.get_layout() != h5py.h5d.CONTIGUOUS:
        raise ValueError(f"{name} is not stored contiguously: chunks, filters and virtual datasets are not read")
    if storage.get_external_count():
        raise ValueError(f"{name} is stored in another file")
    if not _has_type(dataset, dtype):
        raise ValueError(f"{name} has the type {dataset.dtype}, not {dtype}")
    if dataset.shape is None or len(dataset.shape) != n_axes:
        raise ValueError(f"{name} has the shape {dataset.shape}, not {n_axes} axes")
    # A string takes more bytes in the file than its pointer in memory, so the sizes need not be equal.
    n_bytes, stored_bytes = math.prod(dataset.shape) * dataset.id.get_type().get_size(), dataset.id.get_storage_size()
    if not n_bytes <= stored_bytes <= dataset.file.id.get_filesize():
        raise ValueError(f"{name} has the shape {dataset.shape}, but the file does not hold that many values")


def _has_type(dataset: h5py.Dataset, dtype: np.dtype) -> bool:
    if dtype.names:
        names = dataset.dtype.names or ()
        return names == dtype.names and all(_is_string(dataset.dtype[name]) for name in names)
    return _is_string(dataset.dtype) if dtype == STRING else bool(dataset.dtype == dtype)


def _is_string(dtype: np.dtype) -> bool:
    return h5py.check_string_dtype(dtype) == h5py.check_string_dtype(STRING)


def _check_values(file: h5py.File, recipe: Recipe, *, n_clips: int) -> None:
    """Raise ValueError unless the values have the axes that the recipe and the table of clips say."""
    values, n_layers = file["values"], len(recipe.layer_axis)
    shape: tuple[int, ...] = getattr(values, "shape", None) or ()
    layered = recipe.pool != "none" or n_layers > 1
    # A store without features does not know their shape.
    n_axes = len(shape) if n_clips == 0 else 4 if recipe.modality == "faces" else 3 if layered else 2
    dtypes = valid_dtypes(np.dtype(recipe.storage_dtype))
    dtype = values.dtype if getattr(values, "dtype", None) in dtypes else dtypes[0]
    _check_dataset(values, name="values", dtype=dtype, n_axes=n_axes)
    if n_clips == 0:
        if math.prod(shape):
            raise ValueError(f"values have the shape {shape}, but there are no clips")
        return
    expected: tuple[int, ...]
    if recipe.pool != "none":
        expected = (n_clips, n_layers)
    else:
        n_frames = _count_frames(file)
        expected = (n_layers, n_frames) if layered else (n_frames,)
    if shape[: len(expected)] != expected:
        axes = ", ".join(map(str, expected))
        raise ValueError(f"values have the shape {shape}, not ({axes}, ...)")
    if recipe.modality == "faces" and (shape[1] != shape[2] or shape[3] != 3):
        raise ValueError(f"face crops have the shape {shape[1:]}, not a square of three colours")
    if not 0 < shape[-1] <= MAX_CHANNELS:
        raise ValueError(f"values have {shape[-1]:,} channels, 1 to {MAX_CHANNELS:,} are valid")


def _count_frames(file: h5py.File) -> int:
    """Return the number of frames of all clips; raise ValueError unless offsets and lengths cover them end to end."""
    lengths = file["length"][:]
    if lengths.min() < 1 or lengths.max() > MAX_FRAMES:
        raise ValueError(f"a length of {lengths.min()} or {lengths.max()} frames: 1 to {MAX_FRAMES:,} are valid")
    ends = np.cumsum(lengths)
    if "offset" in file and not np.array_equal(file["offset"][:], ends - lengths):
        raise ValueError("offsets and lengths do not cover the frames end to end")
    return int(ends[-1])

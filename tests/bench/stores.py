"""Reading everything back: mertool's store against one .npy file per clip, both warm in the page cache."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import Row, say

CHANNELS, LAYERS, CLIPS = 1024, 25, 1500
NAMES = ("store/read-all", "store/read-pooled")


def measure_stores(folder: Path, wanted: set[str], clips: int = CLIPS, repeat: int = 5) -> list[Row]:
    """The rows of NAMES that are wanted."""
    kinds = {"store/read-all": (_frames, _read_frames, _load_frames)}
    kinds["store/read-pooled"] = (_pooled, _read_pooled, _load_pooled)
    return [_measure(name, folder, clips, repeat, *kinds[name]) for name in NAMES if name in wanted]


def _measure(name: str, folder: Path, clips: int, repeat: int, make: Any, ours: Any, theirs: Any) -> Row:
    say(f"{name}: {clips} clips")
    rng = np.random.default_rng(0)
    values = {f"clip{number:05d}": make(rng) for number in range(clips)}
    place = folder / name.replace("/", "-")
    store, files = _write(place, values, pooled=make is _pooled)
    size = sum(value.nbytes for value in values.values()) / 1e6
    if not all(map(np.array_equal, ours(store), theirs(files))):
        raise SystemExit(f"{name}: both sides do not read the same values")
    runs: dict[str, list[float]] = {"engine": [], "naive": []}
    for _ in range(repeat):
        runs["naive"].append(_seconds(lambda: theirs(files)))
        runs["engine"].append(_seconds(lambda: ours(store)))
    return Row(name, size / min(runs["engine"]), "MB/s", size / min(runs["naive"]), {"megabytes": size, "runs": runs})


def _write(folder: Path, values: dict[str, np.ndarray], pooled: bool) -> tuple[Path, list[Path]]:
    """The same values as a store and as files."""
    from mertool.features import Recipe
    from mertool.store import ClipFeatures, StoreWriter

    folder.mkdir()
    layers, pool = (tuple(range(LAYERS)), "mean") if pooled else ((LAYERS - 1,), "none")
    store = folder / "values.h5"
    with StoreWriter(store, Recipe("audio", "made", "-", layers, pool), {}) as writer:
        for clip, value in values.items():
            writer.add(ClipFeatures(clip, clip, value))
        writer.finish(values)
    files = [folder / f"{clip}.npy" for clip in values]
    for file, value in zip(files, values.values(), strict=True):
        np.save(file, value)
    return store, files


def _frames(rng: np.random.Generator) -> np.ndarray:
    return rng.random((int(rng.integers(40, 201)), CHANNELS), np.float32).astype(np.float16)


def _pooled(rng: np.random.Generator) -> np.ndarray:
    return rng.random((LAYERS, CHANNELS), np.float32).astype(np.float16)


def _read_frames(path: Path) -> list[np.ndarray]:
    """As `align` reads a frame store: (T, D) each."""
    from mertool.store import FeatureStore

    with FeatureStore(path) as store:
        return store.all_frames()


def _load_frames(files: list[Path]) -> list[np.ndarray]:
    return [np.load(file) for file in files]


def _read_pooled(path: Path) -> np.ndarray:
    """(N, L, D) float32, as `probe-layers` and `fuse` read."""
    from mertool.store import FeatureStore

    with FeatureStore(path) as store:
        return store.read()


def _load_pooled(files: list[Path]) -> np.ndarray:
    return np.stack([np.load(file) for file in files]).astype(np.float32)


def _seconds(read: Callable[[], object]) -> float:
    began = time.perf_counter()
    read()
    return time.perf_counter() - began

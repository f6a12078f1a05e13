"""Reading everything back: mertool's store against one .npy file per clip, both warm in the page cache."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from report import Row, say

CHANNELS, LAYERS, CLIPS = 1024, 25, 1500


@dataclass(frozen=True, kw_only=True)
class StoreCase:
    """One comparison: `make` makes the values of a clip, the others read those of all clips."""

    pooled: bool
    make: Callable[[np.random.Generator], np.ndarray]
    read_store: Callable[[Path], Any]
    load_files: Callable[[list[Path]], Any]


def measure_stores(folder: Path, names: set[str], *, clips: int = CLIPS, repeat: int = 5) -> list[Row]:
    """Return the rows of STORE_CASES with these names."""
    return [_measure(name, folder, clips=clips, repeat=repeat) for name in STORE_CASES if name in names]


def _measure(name: str, folder: Path, *, clips: int, repeat: int) -> Row:
    say(f"{name}: {clips} clips")
    case = STORE_CASES[name]
    rng = np.random.default_rng(0)
    values = {f"clip{number:05d}": case.make(rng) for number in range(clips)}
    store, files = _write(folder / name.replace("/", "-"), values, pooled=case.pooled)
    size = sum(value.nbytes for value in values.values()) / 1e6
    if not all(map(np.array_equal, case.read_store(store), case.load_files(files))):
        raise SystemExit(f"{name}: both sides do not read the same values")
    runs: dict[str, list[float]] = {"engine": [], "naive": []}
    for _ in range(repeat):
        runs["naive"].append(_seconds(lambda: case.load_files(files)))
        runs["engine"].append(_seconds(lambda: case.read_store(store)))
    return Row(name, size / min(runs["engine"]), "MB/s", size / min(runs["naive"]), {"megabytes": size, "runs": runs})


def _write(folder: Path, values: dict[str, np.ndarray], pooled: bool) -> tuple[Path, list[Path]]:
    """Write the same values as a store and as .npy files."""
    from mertool.features import Recipe
    from mertool.store import ClipFeatures, StoreWriter

    folder.mkdir()
    layers, pool = (tuple(range(LAYERS)), "mean") if pooled else ((LAYERS - 1,), "none")
    store = folder / "values.h5"
    with StoreWriter(
        store, Recipe(modality="audio", encoder="made", weights="-", layers=layers, pool=pool), {}
    ) as writer:
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
    """Return the frames (T, D) of all clips."""
    from mertool.store import FeatureStore

    with FeatureStore(path) as store:
        return store.all_frames()


def _load_frames(files: list[Path]) -> list[np.ndarray]:
    return [np.load(file) for file in files]


def _read_pooled(path: Path) -> np.ndarray:
    """Return (N, L, D) float32, as `probe-layers` and `fuse` read it."""
    from mertool.store import FeatureStore

    with FeatureStore(path) as store:
        return store.read()


def _load_pooled(files: list[Path]) -> np.ndarray:
    return np.stack([np.load(file) for file in files]).astype(np.float32)


def _seconds(read: Callable[[], object]) -> float:
    began = time.perf_counter()
    read()
    return time.perf_counter() - began


STORE_CASES = {
    "store/read-all": StoreCase(pooled=False, make=_frames, read_store=_read_frames, load_files=_load_frames),
    "store/read-pooled": StoreCase(pooled=True, make=_pooled, read_store=_read_pooled, load_files=_load_pooled),
}

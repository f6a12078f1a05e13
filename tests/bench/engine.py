"""mertool's side: `extract` in this process, timed without loading the model; and the encoder by itself."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GPU_SECONDS = 320.0  # seconds of sound, padded, in a batch of the encoder by itself


@dataclass(frozen=True)
class Measured:
    """One run: `seconds` without loading; `outer` the same by this script's own clock; `parts` as reported.

    `amount` is seconds of sound, frames with a face, or texts; `features` (N, D) are the last layer's.
    """

    seconds: float
    outer: float
    amount: float
    parts: dict[str, float]
    dtype: str
    features: np.ndarray


def measure(modality: str, model: Path, manifest: Any, output: Path, device: str, dtype: str = "auto") -> Measured:
    """Extract every clip of the manifest into a new store `output`."""
    from mertool import encoders
    from mertool.extract import extract
    from mertool.options.extract import ExtractOptions

    options = ExtractOptions(modality=modality, encoder=str(model), device=device, dtype=dtype)
    with clock(encoders, "load_encoder") as loading, clock(encoders.CheckpointRef, "digest") as hashing:
        began = time.perf_counter()
        result = extract(manifest, output, options)
        outer = time.perf_counter() - began - loading["seconds"] - hashing["seconds"]
    if result.extracted != len(manifest):
        raise SystemExit(f"{modality}: {len(manifest) - result.extracted} of {len(manifest)} clips failed")
    seconds = float(result.seconds.get("wall", outer))
    return Measured(seconds, outer, *_read(output, modality, manifest, result), *_content(output, manifest))


def encode_alone(model: Path, waves: Sequence[np.ndarray], dtype: str, device: str) -> float:
    """Seconds the encoder needs for decoded waves, all layers; on a GPU in batches of like length."""
    import torch

    encoder = load_encoder(model, "audio", device, dtype)
    keep = tuple(range(encoder.num_layers + 1))
    batches = by_length(waves, GPU_SECONDS) if device == "cuda" else [[wave] for wave in waves]
    encoder.encode(batches[0], keep)
    return timed(lambda: [encoder.encode(batch, keep) for batch in batches], torch.device(device))


def load_encoder(model: Path, modality: str, device: Any, dtype: str) -> Any:
    """Load the encoder in the folder `model`."""
    import torch

    from mertool import encoders

    checkpoint = encoders.resolve_encoder(str(model), modality)
    return encoders.load_encoder(checkpoint, modality, device=torch.device(device), dtype=getattr(torch, dtype))


def by_length(waves: Sequence[np.ndarray], seconds: float, rate: int = 16_000) -> list[list[np.ndarray]]:
    """Batches of like length that hold at most so many seconds with their padding."""
    batches: list[list[np.ndarray]] = [[]]
    for wave in sorted(waves, key=len):
        if batches[-1] and len(wave) / rate * (len(batches[-1]) + 1) > seconds:
            batches.append([])
        batches[-1].append(wave)
    return batches


def timed(work: Any, device: Any) -> float:
    """Seconds until the device has done the work."""
    import torch

    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


@contextmanager
def clock(owner: Any, name: str) -> Iterator[dict[str, float]]:
    """Measure the seconds spent in a function of a module or class while open."""
    spent, function = {"seconds": 0.0}, getattr(owner, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            spent["seconds"] += time.perf_counter() - began

    setattr(owner, name, wrapped)
    try:
        yield spent
    finally:
        setattr(owner, name, function)


def _read(output: Path, modality: str, manifest: Any, result: Any) -> tuple[float, dict[str, float]]:
    """The amount of media, and the parts of the time the engine reports."""
    from mertool.store import FeatureStore

    with FeatureStore(output) as store:
        facts = store.media_stats()
    faces = float(np.round(facts["frames_seen"] * facts["face_share"]).sum()) if modality == "video" else 0.0
    amount = {"audio": result.media_seconds, "video": faces, "text": float(len(manifest))}[modality]
    return amount, dict(result.seconds)


def _content(output: Path, manifest: Any) -> tuple[str, np.ndarray]:
    """The number format of a store, and its last layer (N, D) in the manifest's order."""
    from mertool.store import FeatureStore

    with FeatureStore(output) as store:
        features = store.read([clip.clip for clip in manifest.clips])[:, -1]
        return store.recipe.compute_dtype, features

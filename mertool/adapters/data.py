"""What training starts from: every clip's frames below the first adapted block, and what masks hide.

The frozen prefix is extracted once, like any features, into a frame store of float16 that later runs with the
same encoder and layers read again. The exact form keeps the output of the convolutions in memory instead.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mertool import encoders
from mertool.adapters.masked_prediction import log_mel
from mertool.devices import dtype_name
from mertool.encoders.speech import MOST_SECONDS
from mertool.errors import ClipError, MertoolError
from mertool.extraction.clip_encoder import EncoderAssets
from mertool.extraction.decoding import DecoderLimits, DecoderPool, decode_audio
from mertool.extraction.driver import extract_to_stores
from mertool.extraction.job import ExtractionJob
from mertool.extraction.plan import WorkItem, item_digest
from mertool.extraction.targets import StoreTarget
from mertool.features import PREPROCESSING_VERSIONS, SAMPLE_RATE, Recipe, format_layers
from mertool.manifest import Manifest
from mertool.store import FeatureStore, StoreBusy

MOST_FRAMES = MOST_SECONDS * 50  # attention grows with the square of the length; half a minute shows the emotion
CACHE = "frozen-layers"  # the folder of the stores, beside the runs that share them
SECONDS_BETWEEN_LOOKS = 2.0
Progress = Callable[[str, str], AbstractContextManager[Callable[..., None]]]


@dataclass(frozen=True)
class Clips:
    """Clips with sound: `inputs` (T, D) of each by block, on the CPU, and the reasons of those without.

    `inputs[block]` is where training starts that adapts blocks from `block` + 1 on (one entry in the exact
    form). `hidden` are frames (T, M) that masks hide: a frozen layer or the log-mel spectrogram.
    """

    names: tuple[str, ...]
    inputs: dict[int, list[torch.Tensor]]
    hidden: list[np.ndarray] | None
    skipped: dict[str, str]

    def lengths(self) -> np.ndarray:
        """(N,) frames of each clip."""
        return np.array([len(frames) for frames in next(iter(self.inputs.values()))])

    def reordered(self, order: list[int]) -> "Clips":
        """The same clips in another order."""
        inputs = {block: [frames[row] for row in order] for block, frames in self.inputs.items()}
        hidden = None if self.hidden is None else [self.hidden[row] for row in order]
        return Clips(tuple(self.names[row] for row in order), inputs, hidden, self.skipped)


@dataclass(frozen=True)
class Wanted:
    """What to read: the outputs of `blocks` of an encoder (0: the embedding), a frozen layer or log-mel as
    the target of masks. `exact` reads the output of the convolutions instead of that of `blocks`."""

    source: encoders.CheckpointRef
    weights: str
    blocks: tuple[int, ...]
    target_layer: int | None
    logmel: bool
    exact: bool
    dtype: torch.dtype
    device: torch.device
    limits: DecoderLimits


def read_clips(manifest: Manifest, wanted: Wanted, cache: Path, encoder: Any, progress: Progress) -> Clips:
    """Frames of all clips of the manifest that have sound; frames of layers go through stores in `cache`."""
    layers = () if wanted.exact else wanted.blocks
    if wanted.target_layer is not None:
        layers = tuple(sorted({*layers, wanted.target_layer}))
    frames: dict[str, dict[int, np.ndarray]] = {}
    skipped: dict[str, str] = {}
    if layers:
        frames, skipped = _read_layers(manifest, wanted, layers, cache, progress)
    waves: dict[str, tuple[Any, Any]] = {}
    if wanted.exact or wanted.logmel:
        waves, failed = _read_waves(manifest, wanted, encoder, progress)
        skipped |= failed
    names = tuple(clip.clip for clip in manifest.clips if clip.clip not in skipped)
    if not names:
        reasons = ", ".join(sorted(set(skipped.values())))
        raise MertoolError(f"none of the {len(manifest)} clips of {manifest.source} has readable sound ({reasons})")
    if wanted.exact:
        inputs = {0: [waves[name][0] for name in names]}
    else:
        inputs = {block: [torch.from_numpy(frames[name][block]) for name in names] for block in wanted.blocks}
    hidden = None
    if wanted.target_layer is not None:
        hidden = [frames[name][wanted.target_layer] for name in names]
    elif wanted.logmel:
        lengths = [len(clip) for clip in next(iter(inputs.values()))]
        hidden = [log_mel(waves[name][1], length) for name, length in zip(names, lengths, strict=True)]
    return Clips(names, inputs, hidden, skipped)


def _read_layers(
    manifest: Manifest, wanted: Wanted, layers: tuple[int, ...], cache: Path, progress: Progress
) -> tuple[dict[str, dict[int, np.ndarray]], dict[str, str]]:
    media = {"sample_rate": SAMPLE_RATE}
    recipe = Recipe(
        "audio",
        wanted.source.name,
        wanted.weights,
        layers,
        "none",
        dtype_name(wanted.dtype),
        media=media,
        preprocessing=PREPROCESSING_VERSIONS["audio"],
    )
    path = cache / f"{wanted.source.name.replace('/', '--')}-{format_layers(layers)}-{recipe.fingerprint[:8]}.h5"
    provenance = {"encoder": wanted.source.to_json(), "adapter": None, "aligner": None}
    job = ExtractionJob(
        targets=(StoreTarget(path=path, recipe=recipe, provenance=provenance),),
        encoder=EncoderAssets(wanted.source),
        device=wanted.device,
        limits=wanted.limits,
    )
    with progress("frozen layers", "clips") as update:
        while True:
            try:
                extract_to_stores(manifest, job, update)
                break
            except StoreBusy:  # a run beside this one reads the same layers: what it writes serves both
                time.sleep(SECONDS_BETWEEN_LOOKS)
    with FeatureStore(path) as store:
        names = [clip.clip for clip in manifest.clips if clip.clip in store.index]
        skipped = {failure.clip: failure.reason for failure in store.failures()}
        values = store.all_frames(names)
    found = {}
    for name, value in zip(names, values, strict=True):
        stacked = value if len(layers) > 1 else value[None]
        found[name] = {layer: stacked[row][:MOST_FRAMES] for row, layer in enumerate(layers)}
    return found, skipped


@torch.inference_mode()
def _read_waves(
    manifest: Manifest, wanted: Wanted, encoder: Any, progress: Progress
) -> tuple[dict[str, tuple[Any, Any]], dict[str, str]]:
    """The output (T, C) of the convolutions, and the wave, of each clip; each only where it is wanted."""
    items = [WorkItem(clip, item_digest(clip, "audio")) for clip in manifest.clips]
    found: dict[str, tuple[Any, Any]] = {}
    skipped = {}
    with progress("waves", "clips") as update, DecoderPool(wanted.limits) as decoders:
        for done, (item, decoded) in enumerate(decoders.read(items, decode_audio), 1):
            if not isinstance(decoded, ClipError) and encoder.frames(len(decoded.content)) < 1:
                decoded = ClipError("too_short")
            if isinstance(decoded, ClipError):
                skipped[item.clip.clip] = decoded.reason
            else:
                wave = decoded.content[: MOST_SECONDS * SAMPLE_RATE]
                front = None
                if wanted.exact:
                    samples = encoder.standardise(wave)[None].to(encoder.device)
                    front = encoder.model.feature_extractor(samples)[0].T.contiguous().clone().cpu()
                found[item.clip.clip] = (front, wave if wanted.logmel else None)
            update(done, len(items))
    return found, skipped


def only(manifest: Manifest, clips: Iterable[str]) -> Manifest:
    """The manifest with these clips alone, in its order."""
    kept = set(clips)
    return replace(manifest, clips=tuple(clip for clip in manifest.clips if clip.clip in kept))


def choose_unlabelled(manifest: Manifest, most: int, seed: int) -> tuple[str, ...]:
    """Ids of at most `most` clips of the split `unlabelled`, drawn with `seed`."""
    ids = [clip.clip for clip in manifest.clips if clip.split == "unlabelled"]
    if len(ids) > most:
        ids = sorted(np.random.default_rng(seed).choice(ids, most, replace=False).tolist())
    return tuple(ids)

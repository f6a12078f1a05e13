"""Data of adaptation: the input of the first adapted block for every clip, and the frames that masks hide.

The frozen prefix is extracted once, like any features, into a frame store of float16 (float32 where a value is too
large) that later runs with the same encoder and layers read again. With `from_frontend`, the output of the convolutions
is computed instead and kept in memory.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mertool import encoders
from mertool.adapters.masked_prediction import log_mel
from mertool.devices import dtype_name
from mertool.encoders.windows import adaptation_window, audio_settings
from mertool.errors import ClipError, MertoolError
from mertool.extraction.clip_encoder import EncoderAssets
from mertool.extraction.decoding import DecoderLimits, DecoderPool, decode_audio
from mertool.extraction.driver import extract_to_stores
from mertool.extraction.job import ExtractionJob
from mertool.extraction.plan import WorkItem
from mertool.extraction.progress import ProgressFactory
from mertool.extraction.targets import StoreTarget
from mertool.features import PREPROCESSING_VERSIONS, SAMPLE_RATE, Recipe, format_layers
from mertool.manifest import Manifest
from mertool.store import FeatureStore, StoreBusy

FRAMES_PER_SECOND = 50
CACHE_FOLDER = "frozen-layers"  # of the frame stores, beside the runs that share them
RETRY_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class AdaptationData:
    """Clips with readable audio.

    Attributes:
        names: Clip ids (N), sorted unless `reordered`.
        inputs: By block: its output (T, D) for every clip, on the CPU; training of the blocks above starts there. With
            `from_frontend` there is one entry, 0, with the output of the convolutions.
        reconstruction_frames: Frames (T, M) of every clip that masked frames are reconstructed as: of a frozen layer
            or the log-mel spectrogram. None without masks.
        skipped: Clips without readable audio, with the reason.
        cut: Clips longer than the encoder's window (30 s), of which only so much is used from the beginning: attention
            grows with the square of the length, and half a minute shows the emotion.
    """

    names: tuple[str, ...]
    inputs: dict[int, list[torch.Tensor]]
    reconstruction_frames: list[np.ndarray] | None
    skipped: dict[str, str]
    cut: tuple[str, ...] = ()

    def lengths(self) -> np.ndarray:
        """Return the number of frames (N,) of each clip."""
        return np.array([len(frames) for frames in next(iter(self.inputs.values()))])

    def reordered(self, order: Sequence[int]) -> "AdaptationData":
        """Return the same clips in another order."""
        frames = self.reconstruction_frames
        return AdaptationData(
            names=tuple(self.names[row] for row in order),
            inputs={block: [clips[row] for row in order] for block, clips in self.inputs.items()},
            reconstruction_frames=None if frames is None else [frames[row] for row in order],
            skipped=self.skipped,
            cut=self.cut,
        )


@dataclass(frozen=True, kw_only=True)
class AdaptationDataSpec:
    """Which data to read.

    Attributes:
        checkpoint: The encoder.
        weights: Digest of its weights.
        blocks: Blocks whose output training starts from; 0 is the embedding.
        target_layer: Frozen layer that masked frames are reconstructed as.
        log_mel: Whether they are reconstructed as the log-mel spectrogram.
        from_frontend: Whether to read the output of the convolutions instead of that of `blocks`.
        dtype: Precision of the encoder.
        device: Device of the encoder.
        limits: Decoder processes and their time limit.
    """

    checkpoint: encoders.CheckpointRef
    weights: str
    blocks: tuple[int, ...]
    target_layer: int | None = None
    log_mel: bool = False
    from_frontend: bool = False
    dtype: torch.dtype
    device: torch.device
    limits: DecoderLimits

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers to read from the frame store."""
        blocks = () if self.from_frontend else self.blocks
        return blocks if self.target_layer is None else tuple(sorted({*blocks, self.target_layer}))


def read_adaptation_data(
    manifest: Manifest, spec: AdaptationDataSpec, *, cache: Path, encoder: Any, progress: ProgressFactory
) -> AdaptationData:
    """Read the data of all clips of `manifest` that have audio; frames of layers come from frame stores in `cache`.

    `encoder` computes the front end with `from_frontend`, and its window is the most that is used of a clip. Raises
    MertoolError if no clip has readable audio.
    """
    layer_frames: dict[str, dict[int, np.ndarray]] = {}
    frontends: dict[str, torch.Tensor] = {}
    waveforms: dict[str, np.ndarray] = {}
    skipped: dict[str, str] = {}
    cut: set[str] = set()
    if spec.layers:
        max_frames = encoder.window_samples * FRAMES_PER_SECOND // SAMPLE_RATE
        layer_frames, failures = _read_layers(manifest, spec, cache=cache, progress=progress)
        skipped |= failures
        cut = {name for name, frames in layer_frames.items() if len(next(iter(frames.values()))) > max_frames}
        layer_frames = {
            name: {layer: values[:max_frames] for layer, values in frames.items()}
            for name, frames in layer_frames.items()
        }
    if spec.from_frontend or spec.log_mel:
        frontends, waveforms, failures, cut_waveforms = _read_audio(manifest, spec, encoder=encoder, progress=progress)
        skipped |= failures
        cut |= cut_waveforms
    names = tuple(sorted(clip.clip for clip in manifest.clips if clip.clip not in skipped))
    if not names:
        reasons = ", ".join(sorted(set(skipped.values())))
        raise MertoolError(f"none of the {len(manifest)} clips of {manifest.source} has readable audio ({reasons})")
    inputs: dict[int, list[Any]]
    if spec.from_frontend:
        inputs = {0: [frontends[name] for name in names]}
    else:
        inputs = {block: [torch.from_numpy(layer_frames[name][block]) for name in names] for block in spec.blocks}
    frames: list[np.ndarray] | None = None
    if spec.target_layer is not None:
        frames = [layer_frames[name][spec.target_layer] for name in names]
    elif spec.log_mel:
        lengths = [len(clip) for clip in next(iter(inputs.values()))]
        frames = [log_mel(waveforms[name], length) for name, length in zip(names, lengths, strict=True)]
    return AdaptationData(
        names=names,
        inputs=inputs,
        reconstruction_frames=frames,
        skipped=skipped,
        cut=tuple(sorted(cut.intersection(names))),
    )


def _read_layers(
    manifest: Manifest, spec: AdaptationDataSpec, *, cache: Path, progress: ProgressFactory
) -> tuple[dict[str, dict[int, np.ndarray]], dict[str, str]]:
    """Return frames (T, D) by clip and layer, and the clips without audio with their reason."""
    path = _extract_layers(manifest, spec, cache=cache, progress=progress)
    with FeatureStore(path) as store:
        names = [clip.clip for clip in manifest.clips if clip.clip in store.index]
        skipped = {failure.clip: failure.reason for failure in store.failures()}
        clips = store.all_frames(names)
    layer_frames = {}
    for name, values in zip(names, clips, strict=True):
        # A store of one layer has no axis of layers.
        by_layer = values if len(spec.layers) > 1 else values[None]
        layer_frames[name] = {layer: by_layer[index] for index, layer in enumerate(spec.layers)}
    return layer_frames, skipped


def _extract_layers(manifest: Manifest, spec: AdaptationDataSpec, *, cache: Path, progress: ProgressFactory) -> Path:
    """Extract what is missing in the frame store of these layers, and return its path."""
    checkpoint = spec.checkpoint
    recipe = Recipe(
        modality="audio",
        encoder=checkpoint.name,
        weights=spec.weights,
        layers=spec.layers,
        pool="none",
        compute_dtype=dtype_name(spec.dtype),
        media=audio_settings(checkpoint, adaptation_window(checkpoint)),
        preprocessing=PREPROCESSING_VERSIONS["audio"],
    )
    path = cache / f"{checkpoint.name.replace('/', '--')}-{format_layers(spec.layers)}-{recipe.fingerprint[:8]}.h5"
    provenance = {"encoder": checkpoint.to_json(), "adapter": None, "aligner": None}
    job = ExtractionJob(
        targets=(StoreTarget(path=path, recipe=recipe, provenance=provenance),),
        encoder=EncoderAssets(checkpoint),
        device=spec.device,
        limits=spec.limits,
        # Each clip alone: which clips share a batch depends on the decoders and on what a killed run has left, and
        # rounding depends on the batch. A cache that is made again must give the same adapters.
        max_batch_cost=0.0,
    )
    with progress("frozen layers", "clips") as update:
        while True:
            try:
                extract_to_stores(manifest, job, update)
                return path
            except StoreBusy:
                # Another run extracts the same layers at this moment; this one waits and reads what that one wrote.
                time.sleep(RETRY_SECONDS)


@torch.inference_mode()
def _read_audio(
    manifest: Manifest, spec: AdaptationDataSpec, *, encoder: Any, progress: ProgressFactory
) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray], dict[str, str], set[str]]:
    """Decode every clip; return the outputs (T, C) of the front end and the waveforms (samples,), each only if the
    spec needs it, the clips that cannot be read with the reason, and the clips that were cut."""
    items = [WorkItem(clip) for clip in manifest.clips]
    frontends: dict[str, torch.Tensor] = {}
    waveforms: dict[str, np.ndarray] = {}
    skipped, cut, model = {}, set(), encoder.adaptable()
    with progress("waves", "clips") as update, DecoderPool(spec.limits) as decoders:
        for n_done, (item, decoded) in enumerate(decoders.read(items, decode_audio), 1):
            if not isinstance(decoded, ClipError) and model.num_frames(len(decoded.content)) < 1:
                decoded = ClipError("too_short")
            if isinstance(decoded, ClipError):
                skipped[item.clip.clip] = decoded.reason
            else:
                waveform = decoded.content[: encoder.window_samples]
                if len(waveform) < len(decoded.content):
                    cut.add(item.clip.clip)
                if spec.from_frontend:
                    # A clone, because a tensor made in inference mode could not be saved for the backward pass.
                    frontends[item.clip.clip] = model.run_front_end(waveform).contiguous().clone().cpu()
                if spec.log_mel:
                    waveforms[item.clip.clip] = waveform
            update(n_done, len(items))
    return frontends, waveforms, skipped, cut


def sample_unlabelled(manifest: Manifest, max_clips: int, seed: int) -> tuple[str, ...]:
    """Return the ids of at most `max_clips` clips of the split `unlabelled`, drawn with `seed`."""
    # Sorted, so that the draw does not depend on the order of the manifest.
    ids = sorted(clip.clip for clip in manifest.clips if clip.split == "unlabelled")
    if len(ids) > max_clips:
        ids = sorted(np.random.default_rng(seed).choice(ids, max_clips, replace=False).tolist())
    return tuple(ids)

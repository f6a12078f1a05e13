"""`ClipEncoder`: a loaded encoder with its trained parts, which encodes batches of clips for one or more stores."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from mertool import encoders
from mertool.encoders.aligner import CrossFittedAligner
from mertool.encoders.base import Encoder
from mertool.encoders.cpu import optimize_for_cpu
from mertool.encoders.hidden_states import truncate_after
from mertool.extraction.batching import BatchBudget, default_budget
from mertool.extraction.decoding import DecodedClip
from mertool.extraction.multi_adapter import MultiAdapterEncoder
from mertool.extraction.plan import WorkItem
from mertool.extraction.pooling import FeaturePooling
from mertool.extraction.targets import StoreTarget
from mertool.features import IMAGE_PROJECTION


class PreparedClip(NamedTuple):
    """A clip that is ready for the encoder: its work item, the decoded clip, and the encoder's input made of it."""

    item: WorkItem
    decoded: DecodedClip
    inputs: Any


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """A batch that the device works on; its values are copied to the host without holding the next batch up.

    clips: the clips of the batch.
    shapes: the shape of each clip's value for each store.
    values: all values end to end, float32, in the order of `shapes`; on a GPU the copy may still be under way.
    started, ended: CUDA events on a GPU, seconds elsewhere.
    """

    clips: list[PreparedClip]
    shapes: list[list[torch.Size]]
    values: torch.Tensor
    started: Any
    ended: Any

    def fetch(self) -> tuple[list[list[np.ndarray]], float]:
        """Wait for the device; return each clip's values, one per store, and the seconds that the device took."""
        on_gpu = isinstance(self.ended, torch.cuda.Event)
        if on_gpu:
            self.ended.synchronize()
        flat = iter(self.values.split([shape.numel() for clip in self.shapes for shape in clip]))
        values = [[next(flat).view(shape).numpy() for shape in clip] for clip in self.shapes]
        return values, self.started.elapsed_time(self.ended) / 1000 if on_gpu else self.ended - self.started


@dataclass(frozen=True, kw_only=True)
class ClipEncoder:
    """A loaded encoder, and for each store of a job the pooling that makes its values.

    encoder: turns prepared inputs into frames (L, T, D) of `layers`.
    layers: the union of the layers that the stores need, ascending.
    poolings: one for each store, in the order of the job's targets.
    budget: bounds the padded cost of a batch.
    """

    encoder: Encoder | MultiAdapterEncoder
    layers: tuple[int, ...]
    poolings: tuple[FeaturePooling, ...]
    budget: BatchBudget = field(default_factory=lambda: BatchBudget(0))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def truncated(self) -> int:
        """Number of inputs that the encoder has cut so far; only text encoders cut and count."""
        return self.encoder.truncated

    def adapter_of(self, clip_id: str) -> str:
        """Return the name of a clip's adapter, "" without adapters. A batch has one adapter."""
        return self.encoder.adapter_of(clip_id) if isinstance(self.encoder, MultiAdapterEncoder) else ""

    @torch.inference_mode()
    def encode(self, clips: list[PreparedClip]) -> EncodedBatch:
        """Run the encoder on clips of one adapter, and pool their frames for every store."""
        if isinstance(self.encoder, MultiAdapterEncoder):
            self.encoder.select(self.adapter_of(clips[0].item.clip.clip))
        started = _timestamp(self.device)
        frames_of_clips = self.encoder.encode_prepared([clip.inputs for clip in clips], self.layers)
        values = [
            [pooling(frames, clip.item.clip.clip) for pooling in self.poolings]
            for clip, frames in zip(clips, frames_of_clips, strict=True)
        ]
        shapes = [[value.shape for value in clip_values] for clip_values in values]
        flat = torch.cat([value.flatten().float() for clip_values in values for value in clip_values])
        if self.device.type == "cuda":
            # Only a copy into pinned memory runs beside the next batch.
            pinned = torch.empty(flat.shape, pin_memory=True)
            flat = pinned.copy_(flat, non_blocking=True)
        else:
            flat = flat.cpu()
        return EncodedBatch(clips=clips, shapes=shapes, values=flat, started=started, ended=_timestamp(self.device))


def _timestamp(device: torch.device) -> Any:
    """A recorded event on a GPU, where calls return before the work is done; seconds elsewhere."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class EncoderLoader(Protocol):
    """Loads the encoder of a job in the process that uses it; light, so that it can be sent to another machine."""

    def load(
        self, targets: Sequence[StoreTarget], device: torch.device, max_batch_cost: float | None
    ) -> ClipEncoder: ...


@dataclass(frozen=True)
class EncoderAssets:
    """The checkpoint of an encoder and the folder of its adapters.

    checkpoint: the encoder.
    adapters: the folder of its adapters, if any.
    adapter_of_clip: see MultiAdapterEncoder.
    """

    checkpoint: encoders.CheckpointRef
    adapters: Path | None = None
    adapter_of_clip: Mapping[str, str] = field(default_factory=dict)

    def load(
        self, targets: Sequence[StoreTarget], device: torch.device, max_batch_cost: float | None = None
    ) -> ClipEncoder:
        """Load the encoder once for targets whose recipes differ only in layers, pooling, storage and aligner.

        `max_batch_cost` is the largest padded cost of a batch in the encoder's unit; None suits the device.
        """
        recipe = targets[0].recipe
        encoder = encoders.load_encoder(
            self.checkpoint, recipe.modality, device=device, dtype=getattr(torch, recipe.compute_dtype)
        )
        if (window := recipe.media.get("window")) is not None:
            encoder.set_window(window)
        if recipe.media.get(IMAGE_PROJECTION):
            encoder.use_projection()
        layers = tuple(sorted({layer for target in targets for layer in target.recipe.layers}))
        poolings = tuple(FeaturePooling(target.recipe, layers, _load_aligner(target, device)) for target in targets)
        adapted: Encoder | MultiAdapterEncoder = encoder
        if self.adapters:
            adapted = MultiAdapterEncoder.load(encoder, self.adapters, device, adapter_of_clip=self.adapter_of_clip)
        truncate_after(encoder.blocks, layers[-1])
        if device.type == "cpu":
            optimize_for_cpu(encoder.model)
        if max_batch_cost is None:
            max_batch_cost = default_budget(recipe.modality, device.type)
        return ClipEncoder(
            encoder=adapted, layers=layers, poolings=poolings, budget=BatchBudget(max_batch_cost), device=device
        )


def _load_aligner(target: StoreTarget, device: torch.device) -> CrossFittedAligner | None:
    return CrossFittedAligner.load(target.aligner, device) if target.aligner else None

"""An encoder with its trained parts on top, ready to encode by a recipe."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from mertool import encoders, peft_methods
from mertool.encoders.aligner import Aligner
from mertool.encoders.blocks import drop_above
from mertool.encoders.packed import pack
from mertool.engine.batch import Limit, budget
from mertool.engine.kernels import use_kernels
from mertool.engine.pipeline import Work, keep_frames, mean_pool
from mertool.features import Recipe


@dataclass(frozen=True)
class Parts:
    """Where the parts of a recipe lie: the encoder, a folder of adapters, a folder with an aligner.

    `adapter_of_clip` names the adapter of clips that have one of their own (those adapters were trained
    on; each gets one that did not see it); all others get `final`.
    """

    source: encoders.Source
    adapters: Path | None = None
    aligner: Path | None = None
    adapter_of_clip: dict[str, str] = field(default_factory=dict)


def assemble(recipe: Recipe, parts: Parts, device: torch.device, most: float | None = None) -> Work:
    """Load everything the recipe names; `most` is the largest padded cost of a batch, if not the usual."""
    encoder = encoders.load(recipe.modality, parts.source, device, getattr(torch, recipe.compute_dtype))
    aligner = Aligner.load(parts.aligner).to(device) if parts.aligner else None

    def finish(frames: torch.Tensor) -> torch.Tensor:
        if recipe.layer_sum:
            frames = frames.sum(0, keepdim=True)
        if aligner:
            # Rounded as a frame store rounds them, so that both ways to aligned features agree.
            return aligner.embed(frames.to(getattr(torch, recipe.storage_dtype)))
        return keep_frames(frames) if recipe.pool == "none" else mean_pool(frames)

    limit = Limit(budget(recipe.modality, device.type) if most is None else most)
    work = Work(encoder, recipe.layers, finish, limit, device)
    if parts.adapters:
        model = peft_methods.load_adapters(encoder.model, parts.adapters).to(device)
        encoder.model = model
        work.variant = lambda clip: parts.adapter_of_clip.get(clip, peft_methods.FINAL)
        work.select = model.set_adapter
    drop_above(encoder.blocks, max(recipe.layers))
    if device.type == "cpu":
        pack(encoder.model)
        use_kernels(encoder.model)
    return work

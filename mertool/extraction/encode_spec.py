"""An encoder with its trained parts on top, ready to encode by a recipe."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from mertool import encoders
from mertool.adapters import methods as peft_methods
from mertool.encoders.aligner import Aligner
from mertool.encoders.cpu import optimize_for_cpu
from mertool.encoders.hidden_states import truncate_after
from mertool.encoders.packed import pack
from mertool.extraction.batching import BatchBudget, default_budget
from mertool.extraction.multi_adapter import MultiAdapterEncoder
from mertool.extraction.pipeline import EncodeSpec, keep_frames, mean_pool
from mertool.features import Recipe


@dataclass(frozen=True)
class EncoderAssets:
    """Where the parts of a recipe lie: the encoder, a folder of adapters, a folder with an aligner.

    `adapter_of_clip` names the adapter of clips that have one of their own (those adapters were trained
    on; each gets one that did not see it); all others get `final`.
    """

    source: encoders.CheckpointRef
    adapters: Path | None = None
    aligner: Path | None = None
    adapter_of_clip: dict[str, str] = field(default_factory=dict)


def assemble(recipe: Recipe, parts: EncoderAssets, device: torch.device, most: float | None = None) -> EncodeSpec:
    """Load everything the recipe names; `most` is the largest padded cost of a batch, if not the usual."""
    work = assemble_several([recipe], [parts], device, most)
    finish = work.finish
    work.finish = lambda frames: finish(frames)[0]
    return work


def assemble_several(
    recipes: list[Recipe], parts: list[EncoderAssets], device: torch.device, most: float | None = None
) -> EncodeSpec:
    """One encoder for several recipes that differ in layers, pooling, storage and aligner alone.

    The work's `finish` gives the values of each recipe, in their order.
    """
    first, given = recipes[0], parts[0]
    encoder = encoders.load(first.modality, given.source, device, getattr(torch, first.compute_dtype))
    keep = tuple(sorted({layer for recipe in recipes for layer in recipe.layers}))
    aligners = [Aligner.load(part.aligner).to(device) if part.aligner else None for part in parts]

    def finish(frames: torch.Tensor) -> list[torch.Tensor]:
        return [_finish(frames, keep, *pair) for pair in zip(recipes, aligners, strict=True)]

    limit = BatchBudget(default_budget(first.modality, device.type) if most is None else most)
    work = EncodeSpec(encoder, keep, finish, limit, device)
    if given.adapters:
        adapted = MultiAdapterEncoder(encoder, given.adapters, device)
        work.encoder, work.select = adapted, adapted.select
        work.variant = lambda clip: given.adapter_of_clip.get(clip, peft_methods.FINAL)
    truncate_after(encoder.blocks, keep[-1])
    if device.type == "cpu":
        pack(encoder.model)
        optimize_for_cpu(encoder.model)
    return work


def _finish(frames: torch.Tensor, keep: tuple[int, ...], recipe: Recipe, aligner: Aligner | None) -> torch.Tensor:
    """What is stored of the frames (L, T, D) of the layers `keep`."""
    if recipe.layers != keep:
        frames = frames[[keep.index(layer) for layer in recipe.layers]]
    if recipe.layer_sum:
        frames = frames.sum(0, keepdim=True)
    if aligner:
        # Rounded as a frame store rounds them, so that both ways to aligned features agree.
        return aligner.embed(frames.to(getattr(torch, recipe.storage_dtype)))
    return keep_frames(frames) if recipe.pool == "none" else mean_pool(frames)

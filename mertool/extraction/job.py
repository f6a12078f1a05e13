"""`ExtractionJob`: everything that a worker needs to know, on this machine or on another one."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from mertool.extraction.clip_encoder import EncoderLoader
from mertool.extraction.decoding import DecoderLimits
from mertool.extraction.targets import StoreTarget
from mertool.features import Recipe, faces_recipe
from mertool.noise import NoiseCorruption


@dataclass(frozen=True, kw_only=True)
class ExtractionJob:
    """One pass of one encoder over the clips, which writes one or more stores.

    targets: the stores. They share the encoder, its adapters and the media settings; they may differ in layers,
    pooling, storage and aligner.
    encoder: loads the encoder; None for face crops, which are stored as they are decoded.
    device: of the encoder.
    max_batch_cost: largest padded cost of a batch, in the unit of the encoder; None suits the device.
    limits: of the decoder processes.
    faces: a store of face crops that is read and completed (video only).
    noise: mixed into the audio, or blurs the frames, while clips are decoded.
    missing_text: reasons why clips have no transcript (text only).
    engine: `local` or `ray`. With `ray` the work is done on the cluster at `ray_address`, or on a Ray that is started
    for this job.
    """

    targets: tuple[StoreTarget, ...]
    encoder: EncoderLoader | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_batch_cost: float | None = None
    limits: DecoderLimits = field(default_factory=DecoderLimits)
    faces: Path | None = None
    noise: NoiseCorruption | None = None
    missing_text: dict[str, str] = field(default_factory=dict)
    engine: str = "local"
    ray_address: str | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe of the first store; modality and media settings are those of all."""
        return self.targets[0].recipe

    @property
    def modality(self) -> str:
        return self.recipe.modality

    @property
    def faces_target(self) -> StoreTarget | None:
        """The store of face crops, as a target."""
        return StoreTarget(path=self.faces, recipe=faces_recipe(self.recipe.media)) if self.faces else None

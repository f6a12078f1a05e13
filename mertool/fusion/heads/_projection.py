"""Base class of fusion heads, and the layers before most of them: standardise, mix layers, project to one width."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from mertool.fusion.heads._layers import Dropout, Linear, broadcast_over_batch, zero_absent

Shapes = list[tuple[int, int]]  # (L, D) of each modality: layers or spans, and channels
MIN_STD = 1e-5  # a channel that varies less is constant, and keeps its scale


class FusionHead(nn.Module, ABC):
    """Base class of heads: features of P modalities to logits of C classes.

    `inputs` turns features into what the head combines. Where it has a `Standardizer`, that is its `normalise`.
    """

    inputs: Any

    def __init__(self, inputs: nn.Module):
        super().__init__()
        self.inputs = inputs

    def fit_standardizer(self, features: list[torch.Tensor], present: torch.Tensor) -> None:
        """Compute means and deviations of training clips, features (N, L, D) per modality and present (N, P)."""
        self.inputs.normalise.fit(features, present)

    @abstractmethod
    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        """Return logits (..., C) of features, one (..., L, D) per modality, and of which are present, (..., P)."""


class Standardizer(nn.Module):
    """Mean and standard deviation (L, D) of each modality, as buffers; a constant channel is only centred."""

    def __init__(self, shapes: Shapes):
        super().__init__()
        for modality, shape in enumerate(shapes):
            self.register_buffer(f"mean{modality}", torch.zeros(shape))
            self.register_buffer(f"std{modality}", torch.ones(shape))

    def fit(self, features: list[torch.Tensor], present: torch.Tensor) -> None:
        """Compute both from the clips that have the modality; without any they stay as they are."""
        for modality, values in enumerate(features):
            available = values[present[:, modality]]
            if len(available):
                std, mean = torch.std_mean(available, 0, correction=0)
                getattr(self, f"mean{modality}").copy_(mean)
                getattr(self, f"std{modality}").copy_(torch.where(std > MIN_STD, std, torch.ones_like(std)))

    def forward(self, modality: int, values: torch.Tensor) -> torch.Tensor:
        """Return values (..., L, D) of one modality, standardised."""
        mean, std = (broadcast_over_batch(getattr(self, f"{name}{modality}"), 2) for name in ("mean", "std"))
        return (values - mean) / std


class ModalityProjection(nn.Module):
    """Features, one (..., L, D) per modality, to hidden vectors (..., P, width); those of absent modalities are zero.

    The L layers of a pooled store, or spans of a frame store, are averaged with learned weights that sum to one.
    """

    def __init__(self, shapes: Shapes, width: int, dropout: float):
        super().__init__()
        self.normalise = Standardizer(shapes)
        self.mixes = nn.ParameterList([nn.Parameter(torch.zeros(entries)) for entries, _ in shapes])
        self.projections = nn.ModuleList(projection(channels, width, dropout) for _, channels in shapes)

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        hidden = []
        for modality, (values, mix, project) in enumerate(zip(features, self.mixes, self.projections, strict=True)):
            standardised = self.normalise(modality, values)
            vectors = standardised[..., 0, :] if values.shape[-2] == 1 else _weighted_mean(standardised, mix)
            hidden.append(zero_absent(project(vectors), present[..., modality], training=self.training))
        return torch.stack(hidden, dim=-2)


def projection(channels: int, width: int, dropout: float) -> nn.Sequential:
    """Return two linear layers with ReLU between them, and dropout before each."""
    return nn.Sequential(Dropout(dropout), Linear(channels, width), nn.ReLU(), Dropout(dropout), Linear(width, width))


def _weighted_mean(values: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """Return values (..., L, D) averaged over L with the weights softmax(mix), as (..., D)."""
    return torch.einsum("...l,...bld->...bd", mix.softmax(-1), values)

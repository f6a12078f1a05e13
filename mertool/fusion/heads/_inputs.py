"""What heads share: normalise each modality, mix its entries, project to one width; and the form of a head."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from mertool.fusion.heads._layers import Dropout, Linear, blank, by_clip

Features = list[torch.Tensor]


class Standardizer(nn.Module):
    """Mean and deviation (L, D) of each modality, as buffers; a constant channel is left in its scale."""

    def __init__(self, shapes: list[tuple[int, int]]):
        super().__init__()
        for number, shape in enumerate(shapes):
            self.register_buffer(f"mean{number}", torch.zeros(shape))
            self.register_buffer(f"std{number}", torch.ones(shape))

    def fit(self, features: Features, present: torch.Tensor) -> None:
        """From the clips (N, L, D) that have the modality."""
        for number, values in enumerate(features):
            there = values[present[:, number]]
            if len(there):
                deviation, mean = torch.std_mean(there, 0, correction=0)
                getattr(self, f"mean{number}").copy_(mean)
                sound = torch.where(deviation > 1e-5, deviation, torch.ones_like(deviation))
                getattr(self, f"std{number}").copy_(sound)

    def forward(self, number: int, values: torch.Tensor) -> torch.Tensor:
        """Values (..., L, D) of one modality, normalised."""
        return (values - by_clip(getattr(self, f"mean{number}"), 2)) / by_clip(getattr(self, f"std{number}"), 2)


class Inputs(nn.Module):
    """From features, a list of (..., L, D), to hidden vectors (..., M, width); absent modalities are zero.

    The L entries of a modality (layers of a pooled store, spans of a frame store) are mixed by learned weights that
    sum to one.
    """

    def __init__(self, shapes: list[tuple[int, int]], width: int, dropout: float):
        super().__init__()
        self.normalise = Standardizer(shapes)
        self.mixes = nn.ParameterList([nn.Parameter(torch.zeros(entries)) for entries, _ in shapes])
        self.projections = nn.ModuleList(
            nn.Sequential(Dropout(dropout), Linear(channels, width), nn.ReLU(), Dropout(dropout), Linear(width, width))
            for _, channels in shapes
        )

    def forward(self, features: Features, present: torch.Tensor) -> torch.Tensor:
        hidden = []
        for number, (values, mix, project) in enumerate(zip(features, self.mixes, self.projections, strict=True)):
            scaled = self.normalise(number, values)
            mixed = scaled[..., 0, :] if values.shape[-2] == 1 else _mix(scaled, mix)
            hidden.append(blank(project(mixed), present[..., number], self.training))
        return torch.stack(hidden, dim=-2)


def _mix(values: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """Values (..., L, D) to their weighted sum (..., D)."""
    return torch.einsum("...l,...bld->...bd", mix.softmax(-1), values)


class Head(nn.Module, ABC):
    """A head: `embed` gives what `judge` turns into logits (..., C), and `vectors` sees in it one vector per modality.

    Here embeddings are those vectors, (..., M, width), zero for an absent modality.
    """

    inputs: Any

    def __init__(self, inputs: nn.Module):
        super().__init__()
        self.inputs = inputs

    def fit_normaliser(self, features: Features, present: torch.Tensor) -> None:
        """Take means and deviations from training clips."""
        self.inputs.normalise.fit(features, present)

    def embed(self, features: Features, present: torch.Tensor) -> torch.Tensor:
        """What is known of each modality by itself."""
        return self.inputs(features, present)

    def vectors(self, embedded: torch.Tensor) -> torch.Tensor:
        """One vector per modality, (..., M, width)."""
        return embedded

    @abstractmethod
    def judge(self, embedded: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Logits (..., C)."""

    def forward(self, features: Features, present: torch.Tensor) -> torch.Tensor:
        return self.judge(self.embed(features, present), present)

"""The part all heads share: normalise each modality, mix its layers, project to one width."""

import torch
from torch import nn


class Inputs(nn.Module):
    """From features, a list of (B, L, D), to hidden vectors (B, M, width); absent modalities are zero."""

    def __init__(self, shapes: list[tuple[int, int]], width: int, dropout: float):
        super().__init__()
        for number, (layers, channels) in enumerate(shapes):
            self.register_buffer(f"mean{number}", torch.zeros(layers, channels))
            self.register_buffer(f"std{number}", torch.ones(layers, channels))
        self.mixes = nn.ParameterList([nn.Parameter(torch.zeros(layers)) for layers, _ in shapes])
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.Dropout(dropout), nn.Linear(channels, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
            )
            for _, channels in shapes
        )

    def fit(self, features: list[torch.Tensor], present: torch.Tensor) -> None:
        """Mean and deviation of each channel over the clips (N, L, D) that have the modality."""
        for number, values in enumerate(features):
            there = values[present[:, number]]
            if len(there):
                mean, std = getattr(self, f"mean{number}"), getattr(self, f"std{number}")
                mean.copy_(there.mean(0))
                deviation = there.std(0, correction=0)
                std.copy_(torch.where(deviation > 1e-5, deviation, torch.ones_like(deviation)))

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        hidden = []
        for number, (values, mix, project) in enumerate(zip(features, self.mixes, self.projections, strict=True)):
            scaled = (values - getattr(self, f"mean{number}")) / getattr(self, f"std{number}")
            vector = project(torch.einsum("l,bld->bd", mix.softmax(0), scaled))
            hidden.append(torch.where(present[:, number, None], vector, torch.zeros_like(vector)))
        return torch.stack(hidden, dim=1)

"""Attention over modalities: weights from all hidden vectors, softmax over those present.

The form of Lian et al. (MER2023/2024 baselines) with the softmax their papers write; their code has none.
"""

import torch
from torch import nn

from mertool.fusion._inputs import Inputs


def build(shapes: list[tuple[int, int]], classes: int, width: int, dropout: float) -> nn.Module:
    return AttentionHead(shapes, classes, width, dropout)


class AttentionHead(nn.Module):
    """See the top of this file."""

    def __init__(self, shapes: list[tuple[int, int]], classes: int, width: int, dropout: float):
        super().__init__()
        self.inputs = Inputs(shapes, width, dropout)
        self.attention = nn.Sequential(
            nn.Linear(len(shapes) * width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, len(shapes))
        )
        self.classify = nn.Linear(width, classes)

    def fit_normaliser(self, features: list[torch.Tensor], present: torch.Tensor) -> None:
        self.inputs.fit(features, present)

    def weigh(self, hidden: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Weight (B, M) of each modality; absent ones get 0."""
        scores = self.attention(hidden.flatten(1))
        return scores.masked_fill(~present, -1e9).softmax(dim=-1)

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        hidden = self.inputs(features, present)
        return self.classify(torch.einsum("bm,bmw->bw", self.weigh(hidden, present), hidden))

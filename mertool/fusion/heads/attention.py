"""Attention over modalities: weights from all hidden vectors, softmax over those present.

The form of Lian et al. (MER2023/2024 baselines) with the softmax their papers write; their code has none
(`attention-mertools` is their code's).
"""

import torch

from mertool.fusion.heads._inputs import Head, Inputs
from mertool.fusion.heads._layers import Linear, mlp


def build(shapes: list[tuple[int, int]], classes: int, width: int, dropout: float) -> Head:
    return AttentionHead(shapes, classes, width, dropout)


class AttentionHead(Head):
    """See the top of this file."""

    def __init__(self, shapes: list[tuple[int, int]], classes: int, width: int, dropout: float):
        super().__init__(Inputs(shapes, width, dropout))
        self.attention = mlp(len(shapes) * width, width, len(shapes), dropout)
        self.classify = Linear(width, classes)

    def weigh(self, hidden: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Weight (..., M) of each modality; absent ones get 0."""
        return self.attention(hidden.flatten(-2)).masked_fill(~present, -1e9).softmax(dim=-1)

    def judge(self, embedded: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        weights = self.weigh(embedded, present)
        return self.classify((weights.unsqueeze(-1) * embedded).sum(-2))

"""Gated multimodal unit (Arevalo et al., 2017): each channel of each modality has a gate that sees all modalities.

h = sum over modalities of sigmoid(W_m [x_1, ..., x_M]) * tanh(x_m), where x_m are the projected features; an absent
modality adds nothing.
"""

import torch

from mertool.fusion.heads._inputs import Head, Inputs
from mertool.fusion.heads._layers import Dropout, Linear


def build(shapes: list[tuple[int, int]], classes: int, width: int, dropout: float) -> Head:
    return GatedHead(shapes, classes, width, dropout)


class GatedHead(Head):
    """See the top of this file."""

    def __init__(self, shapes: list[tuple[int, int]], classes: int, width: int, dropout: float):
        super().__init__(Inputs(shapes, width, dropout))
        self.gates = Linear(len(shapes) * width, len(shapes) * width)
        self.dropout = Dropout(dropout)
        self.classify = Linear(width, classes)

    def judge(self, embedded: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        gates = self.gates(embedded.flatten(-2)).sigmoid().unflatten(-1, embedded.shape[-2:])
        return self.classify(self.dropout((gates * embedded.tanh()).sum(-2)))

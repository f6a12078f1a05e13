"""Concatenation of the hidden vectors and a small classifier: the plain baseline."""

import torch
from torch import nn

from mertool.fusion._inputs import Inputs


def build(shapes: list[tuple[int, int]], classes: int, width: int, dropout: float) -> nn.Module:
    return ConcatHead(shapes, classes, width, dropout)


class ConcatHead(nn.Module):
    """See the top of this file."""

    def __init__(self, shapes: list[tuple[int, int]], classes: int, width: int, dropout: float):
        super().__init__()
        self.inputs = Inputs(shapes, width, dropout)
        self.classify = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(len(shapes) * width, classes))

    def fit_normaliser(self, features: list[torch.Tensor], present: torch.Tensor) -> None:
        self.inputs.fit(features, present)

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        return self.classify(self.inputs(features, present).flatten(1))

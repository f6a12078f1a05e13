"""Concatenation of the hidden vectors and a small classifier: the plain baseline."""

import torch
from torch import nn

from mertool.fusion.heads._inputs import Head, Inputs
from mertool.fusion.heads._layers import Dropout, Linear


def build(shapes: list[tuple[int, int]], classes: int, width: int, dropout: float) -> Head:
    return ConcatHead(shapes, classes, width, dropout)


class ConcatHead(Head):
    """See the top of this file."""

    def __init__(self, shapes: list[tuple[int, int]], classes: int, width: int, dropout: float):
        super().__init__(Inputs(shapes, width, dropout))
        self.classify = nn.Sequential(nn.ReLU(), Dropout(dropout), Linear(len(shapes) * width, classes))

    def judge(self, embedded: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return self.classify(embedded.flatten(-2))

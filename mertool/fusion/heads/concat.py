"""Concatenation of the hidden vectors and a linear classifier: the plain baseline."""

import torch
from torch import nn

from mertool.fusion.heads._layers import Dropout, Linear
from mertool.fusion.heads._projection import FusionHead, ModalityProjection, Shapes


class ConcatHead(FusionHead):
    """ReLU, dropout and a linear layer on the concatenated hidden vectors."""

    def __init__(self, shapes: Shapes, *, classes: int, width: int, dropout: float):
        super().__init__(ModalityProjection(shapes, width, dropout))
        self.classify = nn.Sequential(nn.ReLU(), Dropout(dropout), Linear(len(shapes) * width, classes))

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        return self.classify(self.inputs(features, present).flatten(-2))


build = ConcatHead

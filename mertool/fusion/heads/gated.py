"""Gated multimodal unit (Arevalo et al., 2017): each channel of each modality has a gate that sees all modalities.

h = sum over modalities of sigmoid(W_m [x_1, ..., x_P]) * tanh(x_m), where x_m are the projected features. An absent
modality adds nothing.
"""

import torch

from mertool.fusion.heads._layers import Dropout, Linear
from mertool.fusion.heads._projection import FusionHead, ModalityProjection, Shapes


class GatedHead(FusionHead):
    """Linear classifier of the gated sum h."""

    def __init__(self, shapes: Shapes, *, classes: int, width: int, dropout: float):
        super().__init__(ModalityProjection(shapes, width, dropout))
        self.gates = Linear(len(shapes) * width, len(shapes) * width)
        self.dropout = Dropout(dropout)
        self.classify = Linear(width, classes)

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        hidden = self.inputs(features, present)
        gates = self.gates(hidden.flatten(-2)).sigmoid().unflatten(-1, hidden.shape[-2:])
        return self.classify(self.dropout((gates * hidden.tanh()).sum(-2)))


build = GatedHead

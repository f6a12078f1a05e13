"""Low-rank multimodal fusion (Liu et al., 2018): a product over modalities in place of their outer product.

The tensor that maps the outer product of all [x_m, 1] to one vector is a sum of RANK rank-one tensors, so the vector is
sum_r a_r * product over m of (W_mr x_m + b_mr). The factor of an absent modality is one.
"""

import torch
from torch import nn

from mertool.fusion.heads._layers import Dropout, Linear, broadcast_over_batch
from mertool.fusion.heads._projection import FusionHead, ModalityProjection, Shapes

RANK = 4


class LowRankHead(FusionHead):
    """Linear classifier of the sum over ranks of the products over modalities."""

    def __init__(self, shapes: Shapes, *, classes: int, width: int, dropout: float):
        super().__init__(ModalityProjection(shapes, width, dropout))
        factors = [Linear(width, RANK * width) for _ in shapes]
        for factor in factors:
            nn.init.ones_(factor.bias)  # factors near one, so that a product of many neither vanishes nor explodes
        self.factors = nn.ModuleList(factors)
        self.ranks = nn.Parameter(torch.full((RANK, 1), 1 / RANK))
        self.dropout = Dropout(dropout)
        self.classify = Linear(width, classes)

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        hidden = self.inputs(features, present)
        product = torch.ones_like(hidden[..., :1, 0])
        for modality, factor in enumerate(self.factors):
            value = factor(hidden[..., modality, :])
            product = product * torch.where(present[..., modality, None], value, torch.ones_like(value))
        ranks = product.unflatten(-1, (RANK, -1)) * broadcast_over_batch(self.ranks, 2)
        return self.classify(self.dropout(ranks.sum(-2)))


build = LowRankHead

"""Low-rank multimodal fusion (Liu et al., 2018): a product over modalities in place of their outer product.

The tensor that maps the outer product of all [x_m, 1] to one vector is a sum of RANK rank-one tensors, so the vector is
sum_r a_r * product over m of (W_mr x_m + b_mr). An absent modality is the factor one.
"""

import torch
from torch import nn

from mertool.fusion.heads._inputs import Head, Inputs
from mertool.fusion.heads._layers import Dropout, Linear, by_clip

RANK = 4


def build(shapes: list[tuple[int, int]], classes: int, width: int, dropout: float) -> Head:
    return LowRankHead(shapes, classes, width, dropout)


class LowRankHead(Head):
    """See the top of this file."""

    def __init__(self, shapes: list[tuple[int, int]], classes: int, width: int, dropout: float):
        super().__init__(Inputs(shapes, width, dropout))
        factors = [Linear(width, RANK * width) for _ in shapes]
        for factor in factors:
            nn.init.ones_(factor.bias)  # near the factor one, so that a product of many neither dies nor explodes
        self.factors = nn.ModuleList(factors)
        self.ranks = nn.Parameter(torch.full((RANK, 1), 1 / RANK))
        self.dropout = Dropout(dropout)
        self.classify = Linear(width, classes)

    def judge(self, embedded: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        product = torch.ones_like(embedded[..., :1, 0])
        for number, factor in enumerate(self.factors):
            value = factor(embedded[..., number, :])
            product = product * torch.where(present[..., number, None], value, torch.ones_like(value))
        ranked = product.unflatten(-1, (RANK, -1)) * by_clip(self.ranks, 2)
        return self.classify(self.dropout(ranked.sum(-2)))

"""Late fusion: each modality has a classifier, and they vote with learned weights.

The probabilities are the mean of the classifiers' over the modalities present, weighted by a softmax over these; the
logits are their logarithm. Without any modality all classes are equal.
"""

import torch
from torch import nn

from mertool.fusion.heads._inputs import Head, Inputs
from mertool.fusion.heads._layers import Dropout, Linear, by_clip


def build(shapes: list[tuple[int, int]], classes: int, width: int, dropout: float) -> Head:
    return LateHead(shapes, classes, width, dropout)


class LateHead(Head):
    """See the top of this file."""

    def __init__(self, shapes: list[tuple[int, int]], classes: int, width: int, dropout: float):
        super().__init__(Inputs(shapes, width, dropout))
        self.classifiers = nn.ModuleList(
            nn.Sequential(nn.ReLU(), Dropout(dropout), Linear(width, classes)) for _ in shapes
        )
        self.votes = nn.Parameter(torch.zeros(len(shapes)))

    def judge(self, embedded: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        each = [classify(embedded[..., number, :]) for number, classify in enumerate(self.classifiers)]
        weights = by_clip(self.votes, 1).masked_fill(~present, -1e9).log_softmax(-1)
        logits = torch.stack(each, -2).log_softmax(-1) + weights.unsqueeze(-1)
        # -1e9 stands for a modality that is absent, so without any the sum is that of all: equal classes instead.
        return _blank(logits.logsumexp(-2), present.any(-1))


def _blank(logits: torch.Tensor, some: torch.Tensor) -> torch.Tensor:
    """Logits (..., C) of clips with some modality, zeros for the others."""
    return torch.where(some.unsqueeze(-1), logits, torch.zeros_like(logits))

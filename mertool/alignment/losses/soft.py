"""Soft labels: the batch's similarities between sounds are what similarities of faces to sounds should be.

The targets are softmax(cos(a_i, a_j) / T), with T fixed, as in SoftCLIP (Gao et al., 2024) and in distillation; clips
that sound alike are then no negatives of each other, but partly positives.
"""

import torch
from torch import nn

from mertool.alignment.losses._similar import Scale, cosines

NEGATIVES = False
TEACHER = 0.1  # temperature of the targets


def build() -> nn.Module:
    return Soft()


class Soft(nn.Module):
    """KL divergence from the targets to the softmax of video against audio, both ways, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale(1 / 0.07)

    def forward(self, visual: torch.Tensor, acoustic: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        wanted = (cosines(acoustic, acoustic) / TEACHER).log_softmax(1)  # symmetric: of rows and of columns alike
        logits = cosines(visual, acoustic) * self.scale()
        return (_kl(logits, wanted) + _kl(logits.T, wanted)) / 2


def _kl(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return nn.functional.kl_div(logits.log_softmax(1), wanted, reduction="batchmean", log_target=True)

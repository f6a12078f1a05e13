"""Sigmoid loss with a learned scale and bias (Zhai et al., 2023): every pair is a binary decision."""

import torch
from torch import nn

from mertool.alignment.losses._cosine import LearnedScale, cosine_matrix

NEGATIVES = True


def build() -> nn.Module:
    return SigLIPLoss()


class SigLIPLoss(nn.Module):
    """Sum over pairs of -log sigmoid(+-(scale * cosine + bias)), divided by the number of clips."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = LearnedScale(10.0)
        # Nearly all pairs are negatives. With a bias of zero the first steps would only learn that.
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, visual: torch.Tensor, acoustic: torch.Tensor, false_negatives: torch.Tensor) -> torch.Tensor:
        logits = cosine_matrix(visual, acoustic) * self.scale() + self.bias
        sign = 2 * torch.eye(len(logits), device=logits.device) - 1
        return -nn.functional.logsigmoid(sign * logits).masked_fill(false_negatives, 0).sum() / len(logits)

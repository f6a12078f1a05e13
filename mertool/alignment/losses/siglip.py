"""Sigmoid loss with a learned scale and bias (Zhai et al., 2023): each pair is a yes or no of its own."""

import torch
from torch import nn

from mertool.alignment.losses._similar import Scale, cosines

NEGATIVES = True


def build() -> nn.Module:
    return SigLIP()


class SigLIP(nn.Module):
    """Sum over pairs of -log sigmoid(+-(scale * cosine + bias)), divided by the clips."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale(10.0)
        # Nearly all pairs are negatives; from zero the first steps would only learn that.
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, visual: torch.Tensor, acoustic: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        logits = cosines(visual, acoustic) * self.scale() + self.bias
        sign = 2 * torch.eye(len(logits), device=logits.device) - 1
        return -nn.functional.logsigmoid(sign * logits).masked_fill(same, 0).sum() / len(logits)

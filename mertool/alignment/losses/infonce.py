"""Symmetric InfoNCE with a learned temperature (van den Oord et al., 2018; Radford et al., 2021)."""

import torch
from torch import nn

from mertool.alignment.losses._similar import Scale, cosines

NEGATIVES = True


def build() -> nn.Module:
    return InfoNCE()


class InfoNCE(nn.Module):
    """Cross-entropy of finding the own clip among the batch, from video to audio and back, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale(1 / 0.07)

    def forward(self, visual: torch.Tensor, acoustic: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        logits = (cosines(visual, acoustic) * self.scale()).masked_fill(same, float("-inf"))
        own = torch.arange(len(logits), device=logits.device)
        return (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)) / 2

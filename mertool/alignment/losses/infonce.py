"""Symmetric InfoNCE with a learned temperature (van den Oord et al., 2018; Radford et al., 2021)."""

import torch
from torch import nn

from mertool.alignment.losses._cosine import LearnedScale, cosine_matrix

NEGATIVES = True


def build() -> nn.Module:
    return InfoNCELoss()


class InfoNCELoss(nn.Module):
    """Cross-entropy of finding the same clip in the batch, averaged over video to audio and audio to video."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = LearnedScale(1 / 0.07)

    def forward(self, visual: torch.Tensor, acoustic: torch.Tensor, false_negatives: torch.Tensor) -> torch.Tensor:
        logits = (cosine_matrix(visual, acoustic) * self.scale()).masked_fill(false_negatives, float("-inf"))
        same_clip = torch.arange(len(logits), device=logits.device)
        cross_entropy = nn.functional.cross_entropy
        return (cross_entropy(logits, same_clip) + cross_entropy(logits.T, same_clip)) / 2

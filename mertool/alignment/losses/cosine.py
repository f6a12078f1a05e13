"""Cosine distance to the acoustic vector of the same clip; without negatives."""

import torch
from torch import nn

NEGATIVES = False


def build() -> nn.Module:
    return CosineLoss()


class CosineLoss(nn.Module):
    """Mean over clips of 1 - cos."""

    def forward(self, visual: torch.Tensor, acoustic: torch.Tensor, false_negatives: torch.Tensor) -> torch.Tensor:
        return 1 - nn.functional.cosine_similarity(visual, acoustic).mean()

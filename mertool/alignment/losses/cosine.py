"""One minus the cosine to the own acoustic vector; without negatives."""

import torch
from torch import nn

NEGATIVES = False


def build() -> nn.Module:
    return Cosine()


class Cosine(nn.Module):
    """Mean over clips of 1 - cos."""

    def forward(self, visual: torch.Tensor, acoustic: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        return 1 - nn.functional.cosine_similarity(visual, acoustic).mean()

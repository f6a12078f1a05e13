"""What the losses share: cosine similarities, and a scale that is learned."""

import torch
from torch import nn

MOST = 100.0  # the largest scale (Radford et al., 2021)


class Scale(nn.Module):
    """A positive factor, the inverse of a temperature, learned as its logarithm."""

    def __init__(self, start: float):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(start).log())

    def forward(self) -> torch.Tensor:
        return self.log.exp().clamp(max=MOST)


def cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of every row of (B, A) with every row of (C, A): (B, C)."""
    return nn.functional.normalize(first, dim=1) @ nn.functional.normalize(second, dim=1).T

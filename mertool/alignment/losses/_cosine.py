"""Cosine similarities and a learned scale, shared by the losses."""

import torch
from torch import nn

MAX_SCALE = 100.0  # as CLIP (Radford et al., 2021): a larger one makes training unstable


class LearnedScale(nn.Module):
    """A positive factor, the inverse of a temperature, learned as its logarithm."""

    def __init__(self, initial: float):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(initial).log())

    def forward(self) -> torch.Tensor:
        return self.log_scale.exp().clamp(max=MAX_SCALE)


def cosine_matrix(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarity (B, C) of every row of (B, A) with every row of (C, A)."""
    return nn.functional.normalize(first, dim=1) @ nn.functional.normalize(second, dim=1).T

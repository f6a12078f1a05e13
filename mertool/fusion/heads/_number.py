"""A fusion head for a number: one output of any head, on the scale of the training clips."""

import torch
from torch import nn

from mertool.fusion.heads._layers import broadcast_over_batch
from mertool.fusion.heads._projection import MIN_STD, FusionHead


class NumberHead(FusionHead):
    """Any head with one output, times the standard deviation of the training clips' numbers, plus their mean.

    Both are buffers (1,) that are saved with the weights, so that the head predicts on the scale of its own training
    clips and training steps do not depend on the scale.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, head: FusionHead):
        nn.Module.__init__(self)  # the inputs are those of `head`
        self.head = head
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))

    def fit_standardizer(self, features: list[torch.Tensor], present: torch.Tensor) -> None:
        self.head.fit_standardizer(features, present)

    def fit_numbers(self, numbers: torch.Tensor) -> None:
        """Take mean and deviation of the numbers (N,) of training clips; equal ones have a deviation of 1."""
        std = numbers.double().std(correction=0)
        self.mean.copy_(numbers.double().mean())
        self.std.copy_(std if std > MIN_STD else torch.ones_like(std))

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        std, mean = (broadcast_over_batch(value, 1) for value in (self.std, self.mean))
        return self.head(features, present) * std + mean

"""Parallel bottleneck adapters: they read the input of the feed-forward network and add to its output.

He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning" (ICLR 2022), who find the parallel
form better than the sequential one: f(x) <- f(x) + W_up ReLU(W_down x + b1) + b2. Their fixed scale is 1 here.
In blocks of the stable kind (HuBERT-large) x is layer-normalised, which keeps the streams of all layers in one range.
"""

from typing import Any

import torch
from torch import nn

from mertool.adapters.methods._tuner import ModuleTuner, PartConfig, part_config, register
from mertool.adapters.methods.bottleneck import RATE, SIZE, TARGETS, Bottleneck

__all__ = ["RATE", "SIZE", "TARGETS", "config"]


def config(targets: list[str], size: int) -> PartConfig:
    """PEFT configuration of bottlenecks of width `size` beside the modules `targets`."""
    return part_config(BottleneckParallelTuner, targets, size)


class ParallelBottleneck(Bottleneck):
    """D -> size -> D from the input of the module it is put on, added to its output."""

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        return base(*args, **kwargs) + self.bend(args[0])


class BottleneckParallelTuner(ModuleTuner):
    """PEFT's tuner for MERTOOL_BOTTLENECK_PARALLEL."""

    prefix = "mertool_bottleneck_parallel_"
    part = ParallelBottleneck


register(BottleneckParallelTuner)

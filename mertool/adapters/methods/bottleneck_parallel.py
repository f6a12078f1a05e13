"""Parallel bottleneck adapters: they read the input of the feed-forward network and add to its output.

He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning" (ICLR 2022), who find the parallel form
better than the sequential one: f(x) <- f(x) + W_up ReLU(W_down x + b1) + b2. Their fixed scale is 1 here. In blocks
with pre-layer normalization (HuBERT-large) x is normalized, so it has the same range in all layers.
"""

from typing import Any

import torch
from torch import nn

from mertool.adapters.methods._tuner import ModuleTuner, ReplacementConfig, make_config, register
from mertool.adapters.methods.bottleneck import RATE, SIZE, TARGETS, Bottleneck

__all__ = ["RATE", "SIZE", "TARGETS", "config"]


def config(targets: list[str], size: int) -> ReplacementConfig:
    """Return the PEFT configuration of bottlenecks of width `size` beside the modules `targets`."""
    return make_config(BottleneckParallelTuner, targets, size)


class ParallelBottleneck(Bottleneck):
    """D -> size -> D from the input of the module it is put on, added to its output."""

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        return base(*args, **kwargs) + self.delta(args[0])


class BottleneckParallelTuner(ModuleTuner):
    """PEFT's tuner for MERTOOL_BOTTLENECK_PARALLEL."""

    prefix = "mertool_bottleneck_parallel_"
    replacement = ParallelBottleneck


register(BottleneckParallelTuner)

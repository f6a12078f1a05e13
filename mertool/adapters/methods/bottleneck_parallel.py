"""Parallel bottleneck adapters: they read the input of the feed-forward network and add to its output.

He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning" (ICLR 2022), who find the parallel form
better than the sequential one: f(x) <- f(x) + W_up ReLU(W_down x + b1) + b2. Their fixed scale is 1 here. In blocks
with pre-layer normalization (HuBERT-large) x is normalized, so it has the same range in all layers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mertool.adapters.methods._modules import BLOCK, FEED_FORWARD, FIRST_LINEAR_ALONE, SECOND_LINEAR_ALONE
from mertool.adapters.methods._tuner import ModuleTuner, ReplacementConfig, make_config, register
from mertool.adapters.methods.bottleneck import RATE, SIZE, Bottleneck

__all__ = ["RATE", "SIZE", "TARGETS", "config"]

TARGETS = (FEED_FORWARD, BLOCK)  # the block where it has no feed-forward module


def config(targets: list[str], size: int) -> ReplacementConfig:
    """Return the PEFT configuration of bottlenecks of width `size` beside the modules `targets`."""
    return make_config(BottleneckParallelTuner, targets, size)


class ParallelBottleneck(Bottleneck):
    """D -> size -> D from the input of a feed-forward network, added to its output."""

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(base, SECOND_LINEAR_ALONE):
            return base(*args, **kwargs) + self.delta(args[0])
        with _beside(getattr(base, FIRST_LINEAR_ALONE), getattr(base, SECOND_LINEAR_ALONE), self.delta):
            return base(*args, **kwargs)


@contextmanager
def _beside(first: nn.Module, last: nn.Module, delta: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Add `delta` of the input of the layer `first` to the output of the layer `last`."""
    inputs: list[torch.Tensor] = []
    handles = [
        first.register_forward_pre_hook(lambda _, args: inputs.append(args[0])),
        last.register_forward_hook(lambda _, __, output: output + delta(inputs.pop())),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class BottleneckParallelTuner(ModuleTuner):
    """PEFT's tuner for MERTOOL_BOTTLENECK_PARALLEL."""

    prefix = "mertool_bottleneck_parallel_"
    replacement = ParallelBottleneck


register(BottleneckParallelTuner)

"""Bottleneck adapters: down, ReLU, up, added to what they read; the up-projection begins at zero.

The method of Zhao et al. (2024), who place them in transformer blocks; placement inside the block is not
published, ours is after the feed-forward network (Houlsby et al., 2019): f <- f + W_up ReLU(W_down f + b1)
+ b2.
"""

from typing import Any

import torch
from torch import nn

from mertool.adapters.methods._tuner import ModuleTuner, PartConfig, part_config, register, width_of

SIZE = 64  # default bottleneck width
RATE = 5e-4  # peak learning rate, as in PEFT-SER (Feng and Narayanan, 2023)
# The feed-forward module of HuBERT, wav2vec 2.0, WavLM and data2vec-audio blocks.
TARGETS = ("feed_forward",)


def config(targets: list[str], size: int) -> PartConfig:
    """PEFT configuration of bottlenecks of width `size` after the modules `targets`."""
    return part_config(BottleneckTuner, targets, size)


class Bottleneck(nn.Module):
    """D -> size -> D, added to the output of the module it is put on."""

    def __init__(self, base: nn.Module, size: int):
        super().__init__()
        channels = width_of(base)
        self.down, self.up = nn.Linear(channels, size), nn.Linear(size, channels)
        nn.init.zeros_(self.down.bias)  # PyTorch's random one can shut every ReLU of a narrow adapter
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def bend(self, hidden: torch.Tensor) -> torch.Tensor:
        """What is added for hidden states (B, T, D)."""
        return self.up(torch.relu(self.down(hidden.to(self.down.bias.dtype)))).to(hidden.dtype)

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = base(*args, **kwargs)
        return hidden + self.bend(hidden)


class BottleneckTuner(ModuleTuner):
    """PEFT's tuner for MERTOOL_BOTTLENECK."""

    prefix = "mertool_bottleneck_"
    part = Bottleneck


register(BottleneckTuner)

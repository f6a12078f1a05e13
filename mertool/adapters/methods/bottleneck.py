"""Bottleneck adapters: down-projection, ReLU, up-projection, and a residual connection around them.

The method of Zhao et al. (2024), who put adapters into transformer blocks without publishing the position. Ours is that
of Houlsby et al. (2019), after the feed-forward network f: f(x) <- f(x) + W_up ReLU(W_down f(x) + b1) + b2. The
up-projection starts at zero, so a new adapter changes nothing.
"""

from typing import Any

import torch
from torch import nn

from mertool.adapters.methods._modules import FEED_FORWARD, SECOND_LINEAR_ALONE
from mertool.adapters.methods._tuner import ModuleTuner, ReplacementConfig, make_config, output_width, register

SIZE = 64  # default bottleneck width
RATE = 1e-3  # peak learning rate
# In a block without a feed-forward module, its last layer, which has the same output.
TARGETS = (FEED_FORWARD, SECOND_LINEAR_ALONE)


def config(targets: list[str], size: int) -> ReplacementConfig:
    """Return the PEFT configuration of bottlenecks of width `size` after the modules `targets`."""
    return make_config(BottleneckTuner, targets, size)


class Bottleneck(nn.Module):
    """D -> size -> D, added to the output of the module it is put on."""

    def __init__(self, base: nn.Module, size: int):
        super().__init__()
        channels = output_width(base)
        self.down, self.up = nn.Linear(channels, size), nn.Linear(size, channels)
        # With PyTorch's random bias, all ReLUs of a narrow adapter may be zero for every input.
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def delta(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the output of the adapter (B, T, D) for hidden states (B, T, D), without the residual."""
        return self.up(torch.relu(self.down(hidden.to(self.down.bias.dtype)))).to(hidden.dtype)

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = base(*args, **kwargs)
        return hidden + self.delta(hidden)


class BottleneckTuner(ModuleTuner):
    """PEFT's tuner for MERTOOL_BOTTLENECK."""

    prefix = "mertool_bottleneck_"
    replacement = Bottleneck


register(BottleneckTuner)

"""Layer adapters: the output of each chosen block reaches the last of them through a bottleneck of its own.

After the L-adapters of Otake et al., "Parameter Efficient Transfer Learning for Various Speech Processing Tasks",
ICASSP 2023. Nothing between blocks changes; the sum of all bottlenecks is added to the output of the last chosen block:
h_last <- h_last + sum_l W_up_l ReLU(W_down_l norm(h_l) + b1_l) + b2_l. The up-projections start at zero. The norm
(without parameters) is ours: hidden states of HuBERT-large differ in scale from layer to layer.
"""

import threading
from typing import Any

import torch
from torch import nn
from torch.nn.functional import layer_norm

from mertool.adapters.methods._tuner import (
    ModuleTuner,
    ReplacementConfig,
    ReplacementLayer,
    hidden_states_of,
    make_config,
    register,
    with_hidden_states,
)
from mertool.adapters.methods.bottleneck import RATE, SIZE, Bottleneck

__all__ = ["RATE", "SIZE", "TARGETS", "config"]

TARGETS = ("",)  # the block itself


def config(targets: list[str], size: int) -> ReplacementConfig:
    """Return the PEFT configuration of bottlenecks of width `size` from the blocks `targets` to the last of them."""
    return make_config(LayerAdaptersTuner, targets, size)


class RunningSum(threading.local):
    """Sum (B, T, D) of the bottlenecks so far in the forward pass of this thread; a copy of a model starts without."""

    value: torch.Tensor | None = None

    def __reduce__(self) -> Any:
        # Thread-local objects cannot be copied, and a copy must not share the sum of a pass that is running.
        return RunningSum, ()


class LayerAdapter(Bottleneck):
    """D -> size -> D from the output of a block.

    The bottlenecks of one adapter share `running_sum`. The first one resets it, as an aborted pass may have left a
    value; the last one adds it to its block's output and clears it.
    """

    def __init__(self, base: nn.Module, size: int):
        super().__init__(base, size)
        self.running_sum, self.is_first, self.is_last = RunningSum(), True, True

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = base(*args, **kwargs)
        hidden = hidden_states_of(output)
        total = self.delta(layer_norm(hidden, hidden.shape[-1:]))
        if not self.is_first and self.running_sum.value is not None:
            total = self.running_sum.value + total
        self.running_sum.value = None if self.is_last else total
        return with_hidden_states(output, hidden + total) if self.is_last else output


class LayerAdaptersTuner(ModuleTuner):
    """PEFT's tuner for MERTOOL_LAYER_ADAPTERS."""

    prefix = "mertool_layer_adapters_"
    replacement = LayerAdapter

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put the bottlenecks on the blocks and make them share one sum."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        layers = [module for module in model.modules() if isinstance(module, ReplacementLayer)]
        adapters = [layer.replacements[adapter_name] for layer in layers if adapter_name in layer.replacements]
        running_sum = RunningSum()
        for adapter in adapters:
            adapter.running_sum = running_sum
            adapter.is_first, adapter.is_last = adapter is adapters[0], adapter is adapters[-1]


register(LayerAdaptersTuner)

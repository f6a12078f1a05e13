"""Layer-to-head adapters: each chosen block's output goes by its own bottleneck straight to what the head reads.

After the L-adapters of Otake et al., "Parameter Efficient Transfer Learning for Various Speech Processing Tasks"
(ICASSP 2023). Nothing between blocks changes; the sum of all bottlenecks is added to the output of the last chosen
block: h_last <- h_last + sum_l W_up_l ReLU(W_down_l norm(h_l) + b1_l) + b2_l. The up-projections begin at zero. The
norm (without parameters) is ours: the streams of HuBERT-large differ in scale from layer to layer.
"""

import threading
from typing import Any

import torch
from torch import nn
from torch.nn.functional import layer_norm

from mertool.adapters.methods._tuner import (
    ModuleTuner,
    PartConfig,
    PartLayer,
    hidden_of,
    part_config,
    register,
    with_hidden,
)
from mertool.adapters.methods.bottleneck import RATE, SIZE, Bottleneck

__all__ = ["RATE", "SIZE", "TARGETS", "config"]

TARGETS = ("",)  # the block itself


def config(targets: list[str], size: int) -> PartConfig:
    """PEFT configuration of bottlenecks of width `size` from the blocks `targets` to the last of them."""
    return part_config(LayerAdaptersTuner, targets, size)


class Total(threading.local):
    """The sum (B, T, D) so far in the forward pass of this thread. Copies of a model begin without one."""

    value: torch.Tensor | None = None

    def __reduce__(self) -> Any:
        return Total, ()


class LayerAdapter(Bottleneck):
    """D -> size -> D from the output of a block.

    The bottlenecks of one adapter share `total`. The first begins it anew, whatever a pass that was broken off
    may have left, and the last adds and forgets it.
    """

    def __init__(self, base: nn.Module, size: int):
        super().__init__(base, size)
        self.total, self.is_first, self.is_last = Total(), True, True

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = base(*args, **kwargs)
        hidden = hidden_of(output)
        total = self.bend(layer_norm(hidden, hidden.shape[-1:]))
        if not self.is_first and self.total.value is not None:
            total = self.total.value + total
        self.total.value = None if self.is_last else total
        return with_hidden(output, hidden + total) if self.is_last else output


class LayerAdaptersTuner(ModuleTuner):
    """PEFT's tuner for MERTOOL_LAYER_ADAPTERS."""

    prefix = "mertool_layer_adapters_"
    part = LayerAdapter

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put the bottlenecks on the blocks and tell them of each other."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        layers = [module for module in model.modules() if isinstance(module, PartLayer)]
        parts = [layer.parts[adapter_name] for layer in layers if adapter_name in layer.parts]
        total = Total()
        for part in parts:
            part.total, part.is_first, part.is_last = total, part is parts[0], part is parts[-1]


register(LayerAdaptersTuner)

"""BitFit: only the biases of the chosen blocks are trained (Ben Zaken et al., 2022).

A difference to each bias is trained and saved. It starts at zero, and the frozen model is not changed. The block runs
with the changed biases in place of its own, so a bias is trained also where another module reads it, as WavLM's
attention does. The bias of the keys is left out, because its gradient is zero.
"""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from mertool.adapters.methods._tuner import UNTRAINABLE, ModuleTuner, ReplacementConfig, make_config, register

SIZE = None  # the model determines the number of biases
RATE = 1e-3  # peak learning rate, the largest of the paper
TARGETS = ("",)  # the block itself


def config(targets: list[str], size: int | None = None) -> ReplacementConfig:
    """Return the PEFT configuration of trained biases in the blocks `targets`."""
    return make_config(BitfitTuner, targets)


class BiasDeltas(nn.Module):
    """A difference to each bias of a block; that of `attention.q_proj.bias` is named `attention-q_proj-bias`."""

    def __init__(self, base: nn.Module, size: int | None):
        super().__init__()
        for name, bias in base.named_parameters():
            if name.endswith("bias") and not name.endswith(UNTRAINABLE):
                # A name of a parameter may not contain a dot.
                self.register_parameter(name.replace(".", "-"), nn.Parameter(torch.zeros(bias.shape)))

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        parameters = dict(base.named_parameters())
        deltas = {name.replace("-", "."): delta for name, delta in self.named_parameters()}
        biases = {name: parameters[name] + delta.to(parameters[name].dtype) for name, delta in deltas.items()}
        return functional_call(base, biases, args, kwargs, tie_weights=False)


class BitfitTuner(ModuleTuner):
    """PEFT's tuner for MERTOOL_BITFIT."""

    prefix = "mertool_bitfit_"
    replacement = BiasDeltas


register(BitfitTuner)

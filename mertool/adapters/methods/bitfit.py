"""BitFit: only the biases of the chosen blocks are trained (Ben Zaken et al., 2022).

What is trained and saved is a shift of each bias, which begins at zero, so that the frozen model stays as it is.
The block runs with shifted biases in place of its own, so a bias is trained also where a module reads it from
another one, as WavLM's attention does. The bias of the keys is left out: its gradient is zero.
"""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from mertool.adapters.methods._tuner import UNTRAINABLE, ModuleTuner, PartConfig, part_config, register

SIZE = None  # the number of biases is given by the model
RATE = 1e-3  # peak learning rate, the largest of the paper
TARGETS = ("",)  # the block itself


def config(targets: list[str], size: int | None = None) -> PartConfig:
    """PEFT configuration of shifted biases in the blocks `targets`."""
    return part_config(BitfitTuner, targets)


class Shifts(nn.Module):
    """A shift for each bias of a block: `attention.q_proj.bias` has `attention-q_proj-bias`."""

    def __init__(self, base: nn.Module, size: int | None):
        super().__init__()
        for name, bias in base.named_parameters():
            if name.endswith("bias") and not name.endswith(UNTRAINABLE):
                self.register_parameter(name.replace(".", "-"), nn.Parameter(torch.zeros(bias.shape)))

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        own = dict(base.named_parameters())
        names = {name.replace("-", "."): shift for name, shift in self.named_parameters()}
        shifted = {name: own[name] + shift.to(own[name].dtype) for name, shift in names.items()}
        return functional_call(base, shifted, args, kwargs, tie_weights=False)


class BitfitTuner(ModuleTuner):
    """PEFT's tuner for MERTOOL_BITFIT."""

    prefix = "mertool_bitfit_"
    part = Shifts


register(BitfitTuner)

"""Full fine-tuning of the chosen blocks: a trained copy of each block runs in its place.

The frozen blocks stay, so several adapters can share one model. A saved adapter contains whole blocks.
"""

from copy import deepcopy
from typing import Any

from torch import nn

from mertool.adapters.methods._tuner import UNTRAINABLE, ModuleTuner, ReplacementConfig, make_config, register

SIZE = None  # the model determines the number of parameters
RATE = 1e-4  # peak learning rate: pre-trained weights need small steps
TARGETS = ("",)  # the block itself


def config(targets: list[str], size: int | None = None) -> ReplacementConfig:
    """Return the PEFT configuration of trained copies of the blocks `targets`."""
    return make_config(FullTuner, targets)


class BlockCopy(nn.Module):
    """A copy of a block; all its parameters that have a gradient are trained."""

    def __init__(self, base: nn.Module, size: int | None):
        super().__init__()
        self.block = deepcopy(base)
        for name, value in list(self.block.named_parameters()):
            if name.endswith(UNTRAINABLE):
                # PEFT makes every parameter of an adapter trainable, so what stays fixed has to be a buffer.
                owner_name, _, own_name = name.rpartition(".")
                owner = self.block.get_submodule(owner_name)
                delattr(owner, own_name)
                owner.register_buffer(own_name, value.detach(), persistent=False)

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.block(*args, **kwargs)


class FullTuner(ModuleTuner):
    """PEFT's tuner for MERTOOL_FULL."""

    prefix = "mertool_full_"
    replacement = BlockCopy

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Leave the copies in the dtype of their model: float32 blocks do not fit into a bfloat16 model."""


register(FullTuner)

"""Full fine-tuning of the chosen blocks: a trained copy of each runs in its place.

The frozen blocks stay, so several adapters can share one model. A saved adapter holds whole blocks.
"""

from copy import deepcopy
from typing import Any

from torch import nn

from mertool.adapters.methods._tuner import UNTRAINABLE, ModuleTuner, PartConfig, part_config, register

SIZE = None  # the number of parameters is given by the model
RATE = 1e-4  # peak learning rate: trained weights bear small steps only
TARGETS = ("",)  # the block itself


def config(targets: list[str], size: int | None = None) -> PartConfig:
    """PEFT configuration of trained copies of the blocks `targets`."""
    return part_config(FullTuner, targets)


class Copy(nn.Module):
    """A copy of a block, of which all is trained that has a gradient."""

    def __init__(self, base: nn.Module, size: int | None):
        super().__init__()
        self.block = deepcopy(base)
        for name, value in list(self.block.named_parameters()):
            if name.endswith(UNTRAINABLE):
                # Stays as it is. PEFT makes every parameter of an adapter trainable, so it may be none.
                owner, _, own_name = name.rpartition(".")
                module = self.block.get_submodule(owner)
                delattr(module, own_name)
                module.register_buffer(own_name, value.detach(), persistent=False)

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.block(*args, **kwargs)


class FullTuner(ModuleTuner):
    """PEFT's tuner for MERTOOL_FULL."""

    prefix = "mertool_full_"
    part = Copy

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Leave the copies in the type of their model: float32 blocks in a bfloat16 model would not fit in."""


register(FullTuner)

"""Linear layers whose weights oneDNN has laid out for this CPU: 1.5 to 1.9 times faster in float32.

torch multiplies float32 by MKL, which takes a slow path on CPUs that are not Intel's, and lays bfloat16
weights out anew in each call. For encoding only: packed weights cannot be trained.
"""

from typing import Any

import torch
from torch import nn

# WavLM's attention reads the weights of its projections instead of calling them.
READS_WEIGHTS = ("WavLMAttention",)


class PackedLinear(nn.Module):
    """What `linear` computes, from packed weights."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias: Any = linear.bias

    @property
    def weight(self) -> torch.Tensor:
        """(out, in), unpacked in each call."""
        return self.packed.to_dense()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")


def pack_linears(model: nn.Module) -> None:
    """Replace the linear layers inside `model` by packed ones, where this build of torch can."""
    if not _can_pack():
        return
    for parent in list(model.modules()):
        if type(parent).__name__ in READS_WEIGHTS:
            continue
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.dtype in (torch.float32, torch.bfloat16):
                setattr(parent, name, PackedLinear(child))


def _can_pack() -> bool:
    """Builds of torch differ in whether oneDNN and these operators are there: ask by doing."""
    try:
        with torch.inference_mode():
            PackedLinear(nn.Linear(8, 8))(torch.zeros(1, 8))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True

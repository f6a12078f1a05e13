"""Linear layers and convolutions of an encoder as products of matrices that oneDNN has laid out for this CPU.

torch multiplies float32 by MKL, which takes a slow path on CPUs that are not Intel's, and lays bfloat16
weights out anew in each call; and oneDNN's convolution over a waveform of one channel is many times slower
than the same sums as a product. For encoding only: packed weights cannot be trained.
"""

from typing import Any

import torch
from torch import nn

from mertool.encoders.hidden_states import FUNCTIONAL_ATTENTION_CLASSES


class PackedLinear(nn.Module):
    """`inputs @ weight.T + bias` for a weight (out, in)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.bias = bias

    @property
    def weight(self) -> torch.Tensor:
        """(out, in), unpacked in each call."""
        return self.packed.to_dense()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")


class PackedConv(nn.Module):
    """A convolution over time without padding: each output frame is a product with the frames under the kernel.

    Frames stay (B, T, C) in memory from one convolution to the next, though their shape is (B, C, T).
    """

    def __init__(self, conv: nn.Conv1d):
        super().__init__()
        (self.kernel_size,), (self.stride,) = conv.kernel_size, conv.stride
        self.linear = PackedLinear(conv.weight.permute(0, 2, 1).flatten(1), conv.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, C, T) -> (B, D, T')."""
        frames = inputs.transpose(1, 2).contiguous()
        batch, length, channels = frames.shape
        count = (length - self.kernel_size) // self.stride + 1
        shape = (batch, count, self.kernel_size * channels)
        windows = frames.as_strided(shape, (length * channels, self.stride * channels, 1))
        return self.linear(windows).transpose(1, 2)


def pack(model: nn.Module) -> None:
    """Replace what can be packed inside `model`, where this build of torch can do it."""
    if not _can_pack():
        return
    for parent in list(model.modules()):
        if type(parent).__name__ in FUNCTIONAL_ATTENTION_CLASSES:
            continue
        for name, child in list(parent.named_children()):
            if packed := _pack(child):
                setattr(parent, name, packed)


def _pack(module: nn.Module) -> nn.Module | None:
    dtype = getattr(getattr(module, "weight", None), "dtype", None)
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    if type(module) is nn.Linear:
        return PackedLinear(module.weight, module.bias)
    if type(module) is nn.Conv1d and _is_plain(module):
        return PackedConv(module)
    return None


def _is_plain(conv: Any) -> bool:
    return conv.in_channels > 1 and conv.groups == 1 and conv.padding == (0,) and conv.dilation == (1,)


def _can_pack() -> bool:
    """Builds of torch differ in whether oneDNN and these operators are there: ask by doing."""
    try:
        with torch.inference_mode():
            PackedLinear(torch.zeros(8, 8), None)(torch.zeros(1, 8))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True

"""Layers of an encoder in forms that compute faster on a CPU; for encoding only, because they cannot be trained.

torch multiplies float32 by MKL, which takes a slow path on CPUs other than Intel's, and lays bfloat16 weights out anew
in each call; and oneDNN's convolution over a waveform of one channel is many times slower than the same sums as a
matrix product. So linear layers and convolutions over time become products with weights laid out by oneDNN.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mertool.devices import has_onednn_linear
from mertool.encoders.hidden_states import FUNCTIONAL_ATTENTION_CLASSES
from mertool.encoders.masked_group_norm import MaskedGroupNorm

PACKABLE_DTYPES = (torch.float32, torch.bfloat16)
MIN_GROUP_CHANNELS = 8  # with fewer channels in a group its matrix product is too thin to be fast


def optimize_for_cpu(model: nn.Module) -> None:
    """Replace linear layers, convolutions over time and the group norm between them, where torch has oneDNN.

    The outputs change by rounding only: 1e-5 of their norm in float32, 1e-2 in bfloat16.
    """
    if not has_onednn_linear():
        return
    for parent in list(model.modules()):
        if type(parent).__name__ in FUNCTIONAL_ATTENTION_CLASSES:
            continue
        for name, child in list(parent.named_children()):
            if (packed := _pack(child, parent)) is not None:
                setattr(parent, name, packed)


class PackedLinear(nn.Module):
    """`inputs @ weight.T + bias` for a weight (out, in) of float32 or bfloat16."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.bias = bias

    @property
    def weight(self) -> torch.Tensor:
        """The weight (out, in), unpacked in each call."""
        return self.packed.to_dense()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, attr="none", scalars=[], algorithm="")


class PackedConv1d(nn.Module):
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


class PackedGroupedConv1d(nn.Module):
    """A convolution over time of stride one in groups of channels: one packed product for each group."""

    def __init__(self, conv: Any):
        super().__init__()
        (self.kernel_size,), (self.padding,) = conv.kernel_size, conv.padding
        weights = conv.weight.permute(0, 2, 1).flatten(1).chunk(conv.groups)
        biases = [None] * conv.groups if conv.bias is None else conv.bias.detach().chunk(conv.groups)
        self.linears = nn.ModuleList(map(PackedLinear, weights, biases))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, C, T) -> (B, D, T')."""
        frames = inputs.unflatten(1, (len(self.linears), -1)).transpose(2, 3)
        frames = functional.pad(frames, (0, 0, self.padding, self.padding)).contiguous()
        batch, groups, length, channels = frames.shape
        shape = (batch, groups, length - self.kernel_size + 1, self.kernel_size * channels)
        windows = frames.as_strided(shape, (groups * length * channels, length * channels, channels, 1))
        outputs = [linear(windows[:, group]) for group, linear in enumerate(self.linears)]
        return torch.cat(outputs, -1).transpose(1, 2)


class ChannelsLastGroupNorm(nn.Module):
    """A MaskedGroupNorm for frames that are (B, T, C) in memory, though their shape is (B, C, T)."""

    def __init__(self, masked: MaskedGroupNorm):
        super().__init__()
        self.masked = masked

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, C, T) -> (B, C, T)."""
        if self.masked.lengths is not None:
            return self.masked(inputs)
        norm = self.masked.norm
        weight, bias = norm.weight.float(), norm.bias.float()
        # Batch norm with the frames of one clip as its batch is group norm over time of one channel per group.
        clips = [
            functional.batch_norm(frames, None, None, weight=weight, bias=bias, training=True, eps=norm.eps)
            for frames in inputs.transpose(1, 2)
        ]
        return (clips[0][None] if len(clips) == 1 else torch.stack(clips)).transpose(1, 2)


def _pack(module: nn.Module, parent: Any) -> nn.Module | None:
    """Return the faster form of a module, None if there is none."""
    if getattr(getattr(module, "weight", None), "dtype", None) not in PACKABLE_DTYPES:
        return None
    if type(module) is nn.Linear:
        return PackedLinear(module.weight, module.bias)
    if type(module) is not nn.Conv1d:
        return None
    if _is_grouped(module):
        return PackedGroupedConv1d(module)
    if _is_plain(module) and (module.in_channels > 1 or _prepare_norm(parent)):
        return PackedConv1d(module)
    return None


def _is_plain(conv: Any) -> bool:
    return conv.groups == 1 and conv.padding == (0,) and conv.dilation == (1,)


def _is_grouped(conv: Any) -> bool:
    same_rate = conv.stride == (1,) and conv.dilation == (1,)
    zero_padded = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    thick = conv.groups > 1 and min(conv.in_channels, conv.out_channels) // conv.groups >= MIN_GROUP_CHANNELS
    return same_rate and zero_padded and thick


def _prepare_norm(layer: Any) -> bool:
    """Return True if the norm after the first convolution is fast on frames (B, T, C); a group norm is made so."""
    norm = getattr(layer, "layer_norm", None)
    if isinstance(norm, MaskedGroupNorm):
        layer.layer_norm = ChannelsLastGroupNorm(norm)
    return isinstance(norm, MaskedGroupNorm | nn.LayerNorm)

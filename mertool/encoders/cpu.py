"""Parts of an encoder computed in ways that are faster on a CPU than those torch takes; for encoding only.

What `encoders.packed` leaves: the first convolution over a waveform and the norm behind it, positional convolutions in
groups, and attention in bfloat16, which torch's fused kernel computes at half the speed of plain products (but for
CPUs with a unit for matrices, AMX, for which it has another way).
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mertool.encoders.packed import PackedConv, PackedLinear
from mertool.encoders.speech import MaskedGroupNorm

LEAST_CHANNELS = 8  # of a group: with fewer the products are too thin


class ChannelsLastGroupNorm(nn.Module):
    """An MaskedGroupNorm for frames that lie (B, T, C) in memory, though their shape is (B, C, T)."""

    def __init__(self, own: MaskedGroupNorm):
        super().__init__()
        self.own = own

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, C, T) -> (B, C, T)."""
        if self.own.lengths is not None:
            return self.own(inputs)
        norm = self.own.norm
        weight, bias = norm.weight.float(), norm.bias.float()
        # Batch norm with the frames of one clip as its batch is group norm over time of one channel each.
        rows = [
            functional.batch_norm(row, None, None, weight, bias, training=True, eps=norm.eps)
            for row in inputs.transpose(1, 2)
        ]
        return (rows[0][None] if len(rows) == 1 else torch.stack(rows)).transpose(1, 2)


class PackedGroupedConv1d(nn.Module):
    """A convolution over time in groups of channels, of stride one: a packed product for each group."""

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


def optimize_for_cpu(model: nn.Module) -> None:
    """Replace what is faster otherwise in a packed model; one that could not be packed stays as it is."""
    if not any(isinstance(module, PackedLinear) for module in model.modules()):
        return
    _replace_sdpa()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Conv1d or child.weight.dtype not in (torch.float32, torch.bfloat16):
                continue
            if _is_of_waveform(child) and _takes_frames(parent):
                setattr(parent, name, PackedConv(child))
            elif _is_of_groups(child):
                setattr(parent, name, PackedGroupedConv1d(child))


def _is_of_waveform(conv: Any) -> bool:
    return conv.in_channels == 1 and conv.groups == 1 and conv.padding == (0,) and conv.dilation == (1,)


def _is_of_groups(conv: Any) -> bool:
    plain = conv.stride == (1,) and conv.dilation == (1,) and conv.padding_mode == "zeros"
    thick = conv.groups > 1 and min(conv.in_channels, conv.out_channels) // conv.groups >= LEAST_CHANNELS
    return plain and thick and not isinstance(conv.padding, str)


def _takes_frames(layer: Any) -> bool:
    """Whether the norm behind a convolution is fast on frames that lie (B, T, C); it is made so if it can be."""
    norm = getattr(layer, "layer_norm", None)
    if isinstance(norm, MaskedGroupNorm):
        layer.layer_norm = ChannelsLastGroupNorm(norm)
    return isinstance(norm, MaskedGroupNorm | nn.LayerNorm)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """(B, H, T, C) each -> (B, H, T, C): attention by products; `mask` is of booleans or added to the scores."""
    scores = (query.contiguous() * scale) @ key.contiguous().transpose(-1, -2)
    if mask is not None and mask.dtype == torch.bool:
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores += mask
    return scores.softmax(-1) @ value.contiguous()


def _replace_sdpa() -> None:
    """Let encoders of transformers attend by products where that is faster; everything else is as before."""
    usual = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if getattr(usual, "by_products", False):
        return

    def sdpa(module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        if not _is_faster(module, query, key, attention_mask, options):
            return usual(module, query, key, value, attention_mask, **options)
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        return attend(query, key, value, attention_mask, scale).transpose(1, 2).contiguous(), None

    sdpa.by_products = True  # type: ignore[attr-defined]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = sdpa


def _is_faster(module: Any, query: torch.Tensor, key: torch.Tensor, mask: Any, options: dict[str, Any]) -> bool:
    if query.dtype != torch.bfloat16 or query.device.type != "cpu" or torch.is_grad_enabled() or _has_matrix_unit():
        return False
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    known = not options.get("dropout") and all(options.get(name) is None for name in ("position_bias", "cache"))
    return known and query.shape[1] == key.shape[1] and (mask is not None or not causal)


def _has_matrix_unit() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16"))

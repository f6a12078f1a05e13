"""The blocks of a speech encoder that training runs: from the first adapted one to the last.

Whatever lies below never changes, so it may be computed once (the frozen prefix); whatever lies above is
never read, so it is not there.
"""

from typing import Any

import torch
from torch import nn

from mertool.encoders.hidden_states import capture_hidden_states, truncate_after
from mertool.errors import MertoolError


class Body(nn.Module):
    """Blocks of an encoder, run from the frozen prefix, or (`exact`) from the convolutional front end.

    With the prefix a clip is (T, D): the output of block `first` - 1, of which 0 is the embedding. In the
    exact form it is (T, C): what the convolutions make of it; masks then stand where HuBERT's own do.
    """

    fill: torch.Tensor

    def __init__(self, encoder: Any, layers: tuple[int, ...], exact: bool):
        super().__init__()
        check_adaptable(encoder)
        self.first, self.last, self.exact = min(layers), max(layers), exact
        # With the prefix the positions are in what comes in, so padding cannot leak through their convolution.
        self.pads = encoder.pads or not exact
        self.model, self.blocks = encoder.model, encoder.blocks
        truncate_after(self.blocks, self.last)
        self.model.requires_grad_(False)
        embed = getattr(self.model, "masked_spec_embed", None)
        fill = torch.zeros(encoder.channels) if embed is None else embed.detach().clone()
        self.register_buffer("fill", fill.to(encoder.device), persistent=False)
        self.model.feature_extractor = nn.Identity()
        if not exact:
            _drop_below(self.model, self.blocks, self.first, encoder.channels, encoder.device)

    def forward(
        self, inputs: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor | None, keep: tuple[int, ...]
    ) -> dict[int, torch.Tensor]:
        """Outputs (B, T, D) of blocks `keep` for clips (B, T, .) of `lengths` (B,) frames.

        Frames where `mask` (B, T) is true are hidden from the blocks.
        """
        hidden = self.model.feature_projection(inputs) if self.exact else inputs.clone()
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if mask is not None:
            hidden = torch.where(mask[..., None], self.fill.to(hidden.dtype), hidden)
        real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        with capture_hidden_states(self.blocks, keep) as found:
            self.model.encoder(hidden, attention_mask=None if bool(real.all()) else real)
        return dict(found)


def check_adaptable(encoder: Any) -> None:
    """Raise for an encoder whose blocks cannot be run by themselves."""
    if not hasattr(encoder, "standardise"):
        raise MertoolError(f"{type(encoder.model).__name__} takes spectrograms: finetune adapts encoders of waveforms")
    inner = getattr(encoder.model, "encoder", None)
    if not all(hasattr(inner, name) for name in ("pos_conv_embed", "layer_norm", "layers")):
        raise MertoolError(
            f"{type(encoder.model).__name__} is not built like HuBERT or wav2vec 2.0: its blocks cannot be adapted"
        )


def mean_over_time(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(B, D): the mean of the real frames of (B, T, D)."""
    counted = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return (hidden.float() * counted[..., None]).sum(1) / counted.sum(1, keepdim=True)


def _drop_below(model: Any, blocks: nn.ModuleList, first: int, channels: int, device: torch.device) -> None:
    """Leave nothing of what the frozen prefix already holds; block numbers stay as they were."""
    outputs = _outputs_of_a_block(model.encoder, blocks[0], channels, device)
    model.feature_projection = nn.Identity()
    model.encoder.pos_conv_embed = _NoPositions()
    model.encoder.layer_norm = nn.Identity()
    for number in range(first - 1):
        bias = blocks[number].attention if number == 0 and hasattr(blocks[0].attention, "compute_bias") else None
        blocks[number] = _Skipped(outputs, bias)


@torch.no_grad()
def _outputs_of_a_block(encoder: nn.Module, block: nn.Module, channels: int, device: torch.device) -> int:
    """How many things a block returns, 0 for a bare tensor: it differs with the family and the version."""
    seen: list[Any] = []
    handle = block.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        encoder(torch.zeros(1, 4, channels, device=device))
    finally:
        handle.remove()
    return len(seen[0]) if isinstance(seen[0], tuple) else 0


class _NoPositions(nn.Module):
    """Positions are in the prefix already."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.new_zeros(1)


class _Skipped(nn.Module):
    """Stands for a block of the prefix; the first of a WavLM still makes the position bias of all others."""

    def __init__(self, outputs: int, attention: Any):
        super().__init__()
        self.outputs, self.attention = outputs, attention

    def forward(self, hidden: torch.Tensor, *_: Any, position_bias: Any = None, **__: Any) -> Any:
        if not self.outputs:
            return hidden
        if self.attention is not None and position_bias is None:
            frames = hidden.shape[1]
            one = self.attention.compute_bias(frames, frames)
            position_bias = one[None].repeat(len(hidden), 1, 1, 1).view(-1, frames, frames)
        return (hidden, position_bias, *[None] * self.outputs)[: self.outputs]

"""The transformer blocks of a speech encoder that training runs: from the first adapted block to the last.

The output of the blocks below never changes, so it is computed once (the frozen prefix). The blocks above are not
needed by the loss, so they are removed.
"""

from typing import Any

import torch
from torch import nn

from mertool.encoders.hidden_states import capture_hidden_states, truncate_after
from mertool.errors import MertoolError


class AdaptableBlocks(nn.Module):
    """Blocks of an encoder, run from the frozen prefix or, with `from_frontend`, from the convolutional front end.

    With the prefix, the input of a clip is the output (T, D) of block `first` - 1, where 0 is the embedding. With
    `from_frontend` it is the output (T, C) of the convolutions, and masks are applied where HuBERT applies its own.

    Attributes:
        model: The encoder without the layers that are not run.
        blocks: Its list of blocks, numbered as in the whole encoder.
        first: First adapted block, counted from 1.
        last: Last adapted block.
        from_frontend: Whether all blocks are run, from the convolutions on.
        supports_padding: Whether clips of different lengths may share a batch.
        mask_embedding: Vector (D,) that replaces masked frames.
    """

    mask_embedding: torch.Tensor

    def __init__(
        self,
        model: Any,
        blocks: nn.ModuleList,
        *,
        first: int,
        from_frontend: bool,
        supports_padding: bool,
        mask_embedding: torch.Tensor,
    ):
        super().__init__()
        self.model, self.blocks = model, blocks
        self.first, self.last = first, len(blocks)
        self.from_frontend, self.supports_padding = from_frontend, supports_padding
        self.register_buffer("mask_embedding", mask_embedding, persistent=False)

    @classmethod
    def from_encoder(cls, encoder: Any, layers: tuple[int, ...], *, from_frontend: bool) -> "AdaptableBlocks":
        """Strip `encoder` (changed in place) of all that adapting blocks `layers` does not run, and freeze it.

        Raises MertoolError for an encoder whose blocks cannot be run by themselves.
        """
        check_adaptable(encoder)
        model, first = encoder.model, min(layers)
        truncate_after(encoder.blocks, max(layers))
        model.requires_grad_(False)
        embedding = getattr(model, "masked_spec_embed", None)
        mask_embedding = torch.zeros(encoder.channels) if embedding is None else embedding.detach().clone()
        model.feature_extractor = nn.Identity()
        if not from_frontend:
            _remove_prefix(encoder, first)
        return cls(
            model,
            encoder.blocks,
            first=first,
            from_frontend=from_frontend,
            # The positions are already in the frozen prefix, so padding cannot leak through their convolution.
            supports_padding=encoder.supports_padding or not from_frontend,
            mask_embedding=mask_embedding.to(encoder.device),
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the first block to the last, those between adapted blocks included."""
        return tuple(range(self.first, self.last + 1))

    def forward(
        self, inputs: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor | None, layers: tuple[int, ...]
    ) -> dict[int, torch.Tensor]:
        """Return the outputs (B, T, D) of blocks `layers` for zero-padded clips (B, T, .) of `lengths` (B,) frames.

        Frames where `mask` (B, T) is true are replaced by the mask embedding.
        """
        hidden = self.model.feature_projection(inputs) if self.from_frontend else inputs.clone()
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if mask is not None:
            hidden = torch.where(mask[..., None], self.mask_embedding.to(hidden.dtype), hidden)
        valid = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        with capture_hidden_states(self.blocks, layers) as outputs:
            # Without padding no mask is given: attention is faster then.
            self.model.encoder(hidden, attention_mask=None if bool(valid.all()) else valid)
        return dict(outputs)


def check_adaptable(encoder: Any) -> None:
    """Raise MertoolError for an encoder whose blocks cannot be run by themselves."""
    if not hasattr(encoder, "normalize_waveform"):
        raise MertoolError(f"{type(encoder.model).__name__} takes spectrograms: finetune adapts encoders of waveforms")
    inner = getattr(encoder.model, "encoder", None)
    if not all(hasattr(inner, name) for name in ("pos_conv_embed", "layer_norm", "layers")):
        raise MertoolError(
            f"{type(encoder.model).__name__} is not built like HuBERT or wav2vec 2.0: its blocks cannot be adapted"
        )


def mean_over_time(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the mean (B, D) of the valid frames of padded clips (B, T, D)."""
    valid = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return (hidden.float() * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)


def _remove_prefix(encoder: Any, first: int) -> None:
    """Replace everything below block `first` by modules that pass their input on; block numbers stay as they were."""
    model, blocks = encoder.model, encoder.blocks
    n_outputs = _count_block_outputs(encoder)
    model.feature_projection = nn.Identity()
    model.encoder.pos_conv_embed = _NoPositions()
    model.encoder.layer_norm = nn.Identity()
    for index in range(first - 1):
        attention = blocks[index].attention if index == 0 else None
        blocks[index] = _PassThroughBlock(n_outputs, attention if hasattr(attention, "compute_bias") else None)


@torch.no_grad()
def _count_block_outputs(encoder: Any) -> int:
    """Return the length of the tuple a block returns, 0 for a bare tensor: it differs by family and version."""
    outputs: list[Any] = []
    handle = encoder.blocks[0].register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        encoder.model.encoder(torch.zeros(1, 4, encoder.channels, device=encoder.device))
    finally:
        handle.remove()
    return len(outputs[0]) if isinstance(outputs[0], tuple) else 0


class _NoPositions(nn.Module):
    """Stands for the position embedding, which is already added in the frozen prefix."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.new_zeros(1)


class _PassThroughBlock(nn.Module):
    """Stands for a block of the frozen prefix and returns its input.

    The first block of a WavLM computes the position bias of all others, so `attention` of it is kept.
    """

    def __init__(self, n_outputs: int, attention: Any):
        super().__init__()
        self.n_outputs, self.attention = n_outputs, attention

    def forward(self, hidden: torch.Tensor, *_: Any, position_bias: Any = None, **__: Any) -> Any:
        if not self.n_outputs:
            return hidden
        if self.attention is not None and position_bias is None:
            n_frames = hidden.shape[1]
            bias = self.attention.compute_bias(n_frames, n_frames)
            position_bias = bias[None].repeat(len(hidden), 1, 1, 1).view(-1, n_frames, n_frames)
        return (hidden, position_bias, *[None] * self.n_outputs)[: self.n_outputs]

"""Encoders of the wav2vec 2.0 kind as adaptation runs them: HuBERT, wav2vec 2.0, WavLM and their relatives."""

from typing import Any

import numpy as np
import torch
from torch import nn

from mertool.encoders.adaptable import AdaptableModel
from mertool.errors import MertoolError


class AdaptableWav2Vec2(AdaptableModel):
    """Convolutions, a projection, and a transformer whose positions are a convolution over the hidden states.

    encoder: a `Wav2Vec2FamilyEncoder`. Raises MertoolError for a model that is built in another way.
    """

    def __init__(self, encoder: Any):
        super().__init__(encoder.model, encoder.blocks)
        inner = getattr(encoder.model, "encoder", None)
        if not all(hasattr(inner, name) for name in ("pos_conv_embed", "layer_norm", "layers")):
            raise MertoolError(
                f"{type(encoder.model).__name__} is not built like HuBERT or wav2vec 2.0: its blocks cannot be adapted"
            )
        self.encoder, self.supports_padding = encoder, encoder.supports_padding

    def mask_embedding(self) -> torch.Tensor | None:
        return getattr(self.model, "masked_spec_embed", None)

    def num_frames(self, samples: int) -> int:
        return int(self.encoder.num_frames(samples))

    def run_front_end(self, waveform: np.ndarray) -> torch.Tensor:
        samples = self.encoder.normalize_waveform(waveform)[None].to(self.encoder.device)
        return self.model.feature_extractor(samples)[0].T

    def remove_front_end(self) -> None:
        self.model.feature_extractor = nn.Identity()

    def remove_prefix(self, first: int) -> None:
        n_outputs = self._count_block_outputs()
        self.model.feature_projection = nn.Identity()
        self.model.encoder.pos_conv_embed = _NoPositions()
        self.model.encoder.layer_norm = nn.Identity()
        for index in range(first - 1):
            attention = self.blocks[index].attention if index == 0 else None
            self.blocks[index] = _PassThroughBlock(n_outputs, attention if hasattr(attention, "compute_bias") else None)

    def project(self, frames: torch.Tensor) -> torch.Tensor:
        hidden = self.model.feature_projection(frames)
        return hidden[0] if isinstance(hidden, tuple) else hidden

    def run_blocks(self, hidden: torch.Tensor, valid: torch.Tensor | None) -> None:
        self.model.encoder(hidden, attention_mask=valid)

    @torch.no_grad()
    def _count_block_outputs(self) -> int:
        """Return the length of the tuple a block returns, 0 for a bare tensor: it differs by family and version."""
        outputs: list[Any] = []
        handle = self.blocks[0].register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            self.model.encoder(torch.zeros(1, 4, self.encoder.channels, device=self.encoder.device))
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

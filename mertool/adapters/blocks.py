"""The transformer blocks of a speech encoder that training runs: from the first adapted block to the last.

The output of the blocks below never changes, so it is computed once (the frozen prefix). The blocks above are not
needed by the loss, so they are removed.
"""

from typing import Any

import torch
from torch import nn

from mertool.encoders.adaptable import AdaptableModel
from mertool.encoders.hidden_states import capture_hidden_states, truncate_after


class AdaptableBlocks(nn.Module):
    """Blocks of an encoder, run from the frozen prefix or, with `from_frontend`, from the convolutional front end.

    With the prefix, the input of a clip is the output (T, D) of block `first` - 1, where 0 is the embedding. With
    `from_frontend` it is the output (T, C) of the convolutions, and masks are applied where HuBERT applies its own.

    Attributes:
        parts: How the encoder's family runs its front end and its blocks.
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
        parts: AdaptableModel,
        *,
        first: int,
        from_frontend: bool,
        supports_padding: bool,
        mask_embedding: torch.Tensor,
    ):
        super().__init__()
        self.parts, self.model, self.blocks = parts, parts.model, parts.blocks
        self.first, self.last = first, len(parts.blocks)
        self.from_frontend, self.supports_padding = from_frontend, supports_padding
        self.register_buffer("mask_embedding", mask_embedding, persistent=False)

    @classmethod
    def from_encoder(cls, encoder: Any, layers: tuple[int, ...], *, from_frontend: bool) -> "AdaptableBlocks":
        """Strip `encoder` (changed in place) of all that adapting blocks `layers` does not run, and freeze it.

        Raises MertoolError for an encoder whose blocks cannot be run by themselves.
        """
        parts, first = encoder.adaptable(), min(layers)
        truncate_after(encoder.blocks, max(layers))
        encoder.model.requires_grad_(False)
        embedding = parts.mask_embedding()
        mask_embedding = torch.zeros(encoder.channels) if embedding is None else embedding.detach().clone()
        parts.remove_front_end()
        if not from_frontend:
            parts.remove_prefix(first)
        return cls(
            parts,
            first=first,
            from_frontend=from_frontend,
            # The positions are already in the frozen prefix, so padding cannot leak through their convolution.
            supports_padding=parts.supports_padding or not from_frontend,
            mask_embedding=mask_embedding.to(encoder.device),
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the first block to the last, those between adapted blocks included."""
        return tuple(range(self.first, self.last + 1))

    @property
    def can_drop_frames(self) -> bool:
        """Whether frames keep their positions when others are left out.

        They do if positions are part of the inputs. The blocks of a WavLM count them inside, as the layers before the
        blocks do.
        """
        return not (self.from_frontend or any(hasattr(module, "compute_bias") for module in self.modules()))

    def forward(
        self, inputs: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor | None, layers: tuple[int, ...]
    ) -> dict[int, torch.Tensor]:
        """Return the outputs (B, T, D) of blocks `layers` for zero-padded clips (B, T, .) of `lengths` (B,) frames.

        Frames where `mask` (B, T) is true are replaced by the mask embedding.
        """
        hidden = self.parts.project(inputs) if self.from_frontend else inputs.clone()
        if mask is not None:
            hidden = torch.where(mask[..., None], self.mask_embedding.to(hidden.dtype), hidden)
        valid = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        with capture_hidden_states(self.blocks, layers) as outputs:
            # Without padding no mask is given: attention is faster then.
            self.parts.run_blocks(hidden, None if bool(valid.all()) else valid)
        return dict(outputs)


def mean_over_time(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the mean (B, D) of the valid frames of padded clips (B, T, D)."""
    valid = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return (hidden.float() * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)

"""Prompt vectors in every chosen block: trained frames that the real frames can attend to.

The deep form of prompt tuning (Jia et al., 2022, "Visual Prompt Tuning"; Li and Liang, 2021): each chosen block has
`size` vectors of its own before its hidden states, and they are removed from its output, so nothing between blocks
changes. They have no position: WavLM's position bias towards them is zero. Attention gives a share to every frame, so
no initial value leaves the block unchanged; the vectors start small and random.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from mertool.adapters.methods._tuner import (
    ModuleTuner,
    ReplacementConfig,
    hidden_states_of,
    make_config,
    output_width,
    register,
    with_hidden_states,
)

SIZE = 16  # default number of vectors in each block
RATE = 5e-3  # peak learning rate: few parameters, far from the loss
TARGETS = ("",)  # the block itself


def config(targets: list[str], size: int) -> ReplacementConfig:
    """Return the PEFT configuration of `size` vectors before the hidden states of each of the blocks `targets`."""
    return make_config(PromptTuner, targets, size)


class Prompt(nn.Module):
    """Vectors (size, D) before a block's hidden states (B, T, D)."""

    def __init__(self, base: nn.Module, size: int):
        super().__init__()
        self.vectors = nn.Parameter(0.02 * torch.randn(size, output_width(base)))

    def forward(self, base: Any, hidden_states: torch.Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        n_vectors = len(self.vectors)
        prompt = self.vectors.to(hidden_states.dtype).expand(len(hidden_states), -1, -1)
        position_bias = None
        # A WavLM block gets the position bias from the block before it; the first block computes it.
        if "position_bias" in kwargs:
            position_bias = kwargs["position_bias"]
            if position_bias is None:
                position_bias = _compute_position_bias(base.attention, hidden_states)
            kwargs["position_bias"] = pad(position_bias, (n_vectors, 0, n_vectors, 0))
        prefixed = torch.cat([prompt, hidden_states], 1)
        output = base(prefixed, attention_mask=_extend_mask(attention_mask, n_vectors), **kwargs)
        output = with_hidden_states(output, hidden_states_of(output)[:, n_vectors:])
        # The next block must get the bias without the vectors, as it adds its own.
        return output if position_bias is None else (output[0], position_bias, *output[2:])


def _extend_mask(mask: Any, n_vectors: int) -> Any:
    """Return an attention mask with `n_vectors` more positions in front, which every frame may attend to.

    `mask` is None; (B, T), true or 1 for valid frames; or (B or 1, 1, T or 1, T), boolean or added to the scores.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.dim() not in (2, 4):
        raise TypeError(f"prompt vectors do not support attention masks of the kind {type(mask).__name__}")
    is_additive = mask.dim() == 4 and mask.is_floating_point()
    n_queries = n_vectors if mask.dim() == 4 and mask.shape[2] > 1 else 0
    padding = (n_vectors, 0, n_queries, 0) if mask.dim() == 4 else (n_vectors, 0)
    return pad(mask, padding, value=0 if is_additive else 1)


def _compute_position_bias(attention: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return WavLM's position bias (B x heads, T, T), as its first block computes it."""
    batch, n_frames, _ = hidden_states.shape
    return attention.compute_bias(n_frames, n_frames).repeat(batch, 1, 1)


class PromptTuner(ModuleTuner):
    """PEFT's tuner for MERTOOL_PROMPT."""

    prefix = "mertool_prompt_"
    replacement = Prompt


register(PromptTuner)

"""Prompt vectors in every chosen block: learned frames that the real ones can attend to.

The deep form of prompt tuning (Jia et al., 2022, "Visual Prompt Tuning"; Li and Liang, 2021): each chosen block gets
`size` vectors of its own in front of its hidden states, and they are cut off its output, so nothing between blocks
changes. They have no position: WavLM's position bias towards them is zero. No start of them leaves a block as it
is, since attention gives its share to whatever it sees; they begin small and random.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from mertool.adapters.methods._tuner import (
    ModuleTuner,
    PartConfig,
    hidden_of,
    part_config,
    register,
    width_of,
    with_hidden,
)

SIZE = 16  # default number of vectors in each block
RATE = 5e-3  # peak learning rate: few parameters far from the loss
TARGETS = ("",)  # the block itself


def config(targets: list[str], size: int) -> PartConfig:
    """PEFT configuration of `size` vectors in front of each of the blocks `targets`."""
    return part_config(PromptTuner, targets, size)


class Prompt(nn.Module):
    """Vectors (size, D) in front of a block's hidden states (B, T, D)."""

    def __init__(self, base: nn.Module, size: int):
        super().__init__()
        self.vectors = nn.Parameter(0.02 * torch.randn(size, width_of(base)))

    def forward(self, base: Any, hidden_states: torch.Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        count = len(self.vectors)
        prompt = self.vectors.to(hidden_states.dtype).expand(len(hidden_states), -1, -1)
        own_bias = None
        if "position_bias" in kwargs:  # WavLM hands it from block to block; the first one makes it
            own_bias = kwargs["position_bias"]
            if own_bias is None:
                own_bias = _make_bias(base.attention, hidden_states)
            kwargs["position_bias"] = pad(own_bias, (count, 0, count, 0))
        longer = torch.cat([prompt, hidden_states], 1)
        output = base(longer, attention_mask=_open(attention_mask, count), **kwargs)
        cut = with_hidden(output, hidden_of(output)[:, count:])
        return cut if own_bias is None else (cut[0], own_bias, *cut[2:])


def _open(mask: Any, count: int) -> Any:
    """An attention mask with `count` more positions in front, which all may see.

    None; (B, T), true or 1 for real frames; (B or 1, 1, T or 1, T), boolean or added to the scores.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.dim() not in (2, 4):
        raise TypeError(f"prompt vectors do not know attention masks of the kind {type(mask).__name__}")
    seen = 0 if mask.dim() == 4 and mask.is_floating_point() else 1
    queries = count if mask.dim() == 4 and mask.shape[2] > 1 else 0
    return pad(mask, (count, 0, queries, 0) if mask.dim() == 4 else (count, 0), value=seen)


def _make_bias(attention: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """WavLM's position bias (B x heads, T, T), as its first block makes it."""
    batch, frames, _ = hidden_states.shape
    return attention.compute_bias(frames, frames).repeat(batch, 1, 1)


class PromptTuner(ModuleTuner):
    """PEFT's tuner for MERTOOL_PROMPT."""

    prefix = "mertool_prompt_"
    part = Prompt


register(PromptTuner)

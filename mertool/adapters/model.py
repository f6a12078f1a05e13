"""The model that training runs: adapted blocks, a classification head and a reconstruction head.

The classification head reads the means over time of all blocks from the first adapted one to the last, side by side.
It starts at zero, with the features standardised as those of the frozen encoder. Neither head is saved.
"""

from collections.abc import Mapping

import torch
from torch import nn

from mertool.adapters.blocks import AdaptableBlocks, mean_over_time


def side_by_side(features: torch.Tensor) -> torch.Tensor:
    """Return the pooled features (n, W D) of W blocks, given as (W, n, D)."""
    return features.transpose(0, 1).flatten(1)


class ClassificationHead(nn.Module):
    """A linear classifier of features (B, F), standardised by `mean` and `scale` (F,); it starts at zero."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, mean: torch.Tensor, scale: torch.Tensor, n_classes: int):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter(mean.new_zeros(len(mean), n_classes))
        self.bias = nn.Parameter(mean.new_zeros(n_classes))

    @classmethod
    def from_features(cls, features: torch.Tensor, n_classes: int) -> "ClassificationHead":
        """Return a head with the standardisation of the training features (n, F)."""
        deviation = features.std(0, correction=0)
        # A channel that does not vary has nothing to tell, and rounding would be magnified.
        scale = torch.where(deviation > 1e-6 * features.abs().amax(0), 1 / deviation, 0.0)
        return cls(features.mean(0), scale, n_classes)

    def forward(self, features: torch.Tensor, dropout: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits (B, C); `dropout` (B, F) has factors of the standardised features."""
        # Float32: standardization magnifies small differences, whose digits bfloat16 would lose.
        with torch.autocast(features.device.type, enabled=False):
            standardised = (features.float() - self.mean) * self.scale
            if dropout is not None:
                standardised = standardised * dropout
            return standardised @ self.weight + self.bias


class AdapterModel(nn.Module):
    """Adapted blocks with a classification head and, for masked reconstruction, a reconstruction head."""

    def __init__(self, blocks: AdaptableBlocks, head: ClassificationHead, reconstruction_head: nn.Linear | None):
        super().__init__()
        self.blocks, self.head, self.reconstruction_head = blocks, head, reconstruction_head

    def forward(
        self,
        inputs: torch.Tensor,
        lengths: torch.Tensor,
        *,
        labelled: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return logits (len(labelled), C) of the clips `labelled`, and predictions (M, size) of all masked frames.

        `inputs` (B, T, .) and `lengths` (B,) are as in `AdaptableBlocks`; predictions are in the order of
        `mask` (B, T), None without a mask. There are two passes, because the head must be trained on features of
        unmasked clips, as it will see in evaluation. `dropout` is that of the head.
        """
        outputs = self.blocks(inputs[labelled], lengths[labelled], None, self.blocks.layers)
        logits = self.head(pool_blocks(outputs, lengths[labelled]), dropout)
        if self.reconstruction_head is None or mask is None:
            return logits, None
        masked = self.blocks(inputs, lengths, mask, (self.blocks.last,))[self.blocks.last]
        return logits, self.reconstruction_head(masked[mask])


def pool_blocks(outputs: Mapping[int, torch.Tensor], lengths: torch.Tensor) -> torch.Tensor:
    """Return the means over time (B, W D) of the outputs (B, T, D) of W blocks, side by side."""
    return torch.cat([mean_over_time(outputs[layer], lengths) for layer in sorted(outputs)], 1)

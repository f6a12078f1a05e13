"""The model that training runs: adapted blocks, a classification head and a reconstruction head.

The classification head reads the mean over time of the last adapted block. It starts as the linear probe of the frozen
features, because a random head would first distort them (Kumar et al., 2022, "Fine-Tuning can Distort Pretrained
Features"). Neither head is saved.
"""

import torch
from torch import nn

from mertool.adapters.blocks import AdaptableBlocks, mean_over_time
from mertool.probing.linear import Probes


class ClassificationHead(nn.Module):
    """A linear probe of pooled features (B, D) whose weight and bias are trained further.

    Its standardization (`mean`, `scale`) stays that of the frozen features.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, probes: Probes):
        super().__init__()
        self.register_buffer("mean", probes.mean[0].clone())
        self.register_buffer("scale", probes.scale[0].clone())
        self.weight, self.bias = nn.Parameter(probes.weight[0].clone()), nn.Parameter(probes.bias[0].clone())

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        # Float32: standardization magnifies small differences, whose digits bfloat16 would lose.
        with torch.autocast(pooled.device.type, enabled=False):
            return (pooled.float() - self.mean) * self.scale @ self.weight + self.bias


class AdapterModel(nn.Module):
    """Adapted blocks with a classification head and, for masked reconstruction, a reconstruction head."""

    def __init__(self, blocks: AdaptableBlocks, head: ClassificationHead, reconstruction_head: nn.Linear | None):
        super().__init__()
        self.blocks, self.head, self.reconstruction_head = blocks, head, reconstruction_head

    def forward(
        self, inputs: torch.Tensor, lengths: torch.Tensor, labelled: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return logits (len(labelled), C) of the clips `labelled`, and predictions (M, size) of all masked frames.

        `inputs` (B, T, .) and `lengths` (B,) are as in `AdaptableBlocks`; predictions are in the order of
        `mask` (B, T), None without a mask. There are two passes, because the head must be trained on features of
        unmasked clips, as it will see in evaluation.
        """
        last = self.blocks.last
        unmasked = self.blocks(inputs[labelled], lengths[labelled], None, (last,))[last]
        logits = self.head(mean_over_time(unmasked, lengths[labelled]))
        if self.reconstruction_head is None or mask is None:
            return logits, None
        masked = self.blocks(inputs, lengths, mask, (last,))[last]
        return logits, self.reconstruction_head(masked[mask])

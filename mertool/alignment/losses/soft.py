"""Soft labels: the similarities of video to audio should be those of audio to audio.

The target distributions are softmax(cos(a_i, a_j) / T) with a fixed T, as in SoftCLIP (Gao et al., 2024) and in
distillation. So clips with similar audio are not negatives of each other, but partly positives.
"""

import torch
from torch import nn

from mertool.alignment.losses._cosine import LearnedScale, cosine_matrix

NEGATIVES = False
TARGET_TEMPERATURE = 0.1


def build() -> nn.Module:
    return SoftLabelLoss()


class SoftLabelLoss(nn.Module):
    """KL divergence from the targets to the softmax of video against audio, averaged over both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = LearnedScale(1 / 0.07)

    def forward(self, visual: torch.Tensor, acoustic: torch.Tensor, false_negatives: torch.Tensor) -> torch.Tensor:
        # The audio similarities are symmetric, so the targets of both directions are the same.
        log_targets = (cosine_matrix(acoustic, acoustic) / TARGET_TEMPERATURE).log_softmax(1)
        logits = cosine_matrix(visual, acoustic) * self.scale()
        return (_kl_divergence(logits, log_targets) + _kl_divergence(logits.T, log_targets)) / 2


def _kl_divergence(logits: torch.Tensor, log_targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.kl_div(logits.log_softmax(1), log_targets, reduction="batchmean", log_target=True)

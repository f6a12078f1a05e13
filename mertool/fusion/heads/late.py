"""Late fusion: one classifier per modality, and a learned weighted mean of their probabilities.

The mean is over the modalities present, weighted by a softmax over these; the logits are its logarithm. Without any
modality all classes are equal. Of a number it is the mean of the outputs, and 0 without any modality.
"""

import torch
from torch import nn

from mertool.fusion.heads._layers import Dropout, Linear, broadcast_over_batch
from mertool.fusion.heads._projection import FusionHead, ModalityProjection, Shapes


class LateHead(FusionHead):
    """Log of the weighted mean of the classifiers' probabilities, or weighted mean of their numbers."""

    def __init__(self, shapes: Shapes, *, classes: int, width: int, dropout: float):
        super().__init__(ModalityProjection(shapes, width, dropout))
        self.classifiers = nn.ModuleList(
            nn.Sequential(nn.ReLU(), Dropout(dropout), Linear(width, classes)) for _ in shapes
        )
        self.votes = nn.Parameter(torch.zeros(len(shapes)))

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        hidden = self.inputs(features, present)
        logits = torch.stack(
            [classify(hidden[..., modality, :]) for modality, classify in enumerate(self.classifiers)], -2
        )
        log_weights = broadcast_over_batch(self.votes, 1).masked_fill(~present, -1e9).log_softmax(-1)
        if logits.shape[-1] == 1:
            mean = (logits * log_weights.exp().unsqueeze(-1)).sum(-2)
        else:
            mean = (logits.log_softmax(-1) + log_weights.unsqueeze(-1)).logsumexp(-2)
        # Of a clip without any modality -1e9 stands for all of them alike, so the mean would be that of all.
        return torch.where(present.any(-1, keepdim=True), mean, torch.zeros_like(mean))


build = LateHead

"""Attention over modalities: weights from all hidden vectors, softmax over those present.

Follows the papers of Lian et al. (MER2023 and MER2024 baselines), which have a softmax; their code has none, see
`attention-mertools`.
"""

import torch

from mertool.fusion.heads._layers import Linear, mlp
from mertool.fusion.heads._projection import FusionHead, ModalityProjection, Shapes


class AttentionHead(FusionHead):
    """Linear classifier of the attention-weighted sum of the hidden vectors."""

    def __init__(self, shapes: Shapes, *, classes: int, width: int, dropout: float):
        super().__init__(ModalityProjection(shapes, width, dropout))
        self.attention = mlp(len(shapes) * width, len(shapes), width=width, dropout=dropout)
        self.classify = Linear(width, classes)

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        hidden = self.inputs(features, present)
        weights = self.attention_weights(hidden, present)
        return self.classify((weights.unsqueeze(-1) * hidden).sum(-2))

    def attention_weights(self, hidden: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return the weight (..., P) of each modality; absent ones have 0."""
        return self.attention(hidden.flatten(-2)).masked_fill(~present, -1e9).softmax(dim=-1)


build = AttentionHead

"""Cross-attention guided by the first store (audio): its tokens are the queries, those of the others keys and values.

Each span of a frame store, or layer of a pooled one, is a token: its projected features plus a learned position.
Scaled dot-product attention (Vaswani et al., 2017) adds to each query the attended values. Where the first modality is
absent, one learned token is the query; where all others are absent, nothing is added. The mean over the queries and the
mean of the attended values are classified together.
"""

import torch
from torch import nn

from mertool.fusion.heads._layers import Dropout, Linear, broadcast_over_batch, zero_absent
from mertool.fusion.heads._projection import FusionHead, Shapes, Standardizer, projection


class ModalityTokens(nn.Module):
    """Features, one (..., L, D) per modality, to tokens (..., T, width), those of the first modality first."""

    def __init__(self, shapes: Shapes, width: int, dropout: float):
        super().__init__()
        self.normalise = Standardizer(shapes)
        self.projections = nn.ModuleList(projection(channels, width, dropout) for _, channels in shapes)
        self.positions = nn.ParameterList([nn.Parameter(0.02 * torch.randn(entries, width)) for entries, _ in shapes])

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        tokens = []
        for modality, (values, project) in enumerate(zip(features, self.projections, strict=True)):
            projected = project(self.normalise(modality, values))
            projected = projected + broadcast_over_batch(self.positions[modality], 2)
            mask = present[..., modality, None].expand(projected.shape[:-1])
            tokens.append(zero_absent(projected, mask, training=self.training))
        return torch.cat(tokens, -2)


class CrossAttentionHead(FusionHead):
    """ReLU, dropout and a linear layer on the mean query and the mean attended value."""

    def __init__(self, shapes: Shapes, *, classes: int, width: int, dropout: float):
        super().__init__(ModalityTokens(shapes, width, dropout))
        self.entries = [entries for entries, _ in shapes]
        self.substitute = nn.Parameter(0.02 * torch.randn(1, width))
        self.query, self.key, self.value = (Linear(width, width) for _ in range(3))
        self.dropout = Dropout(dropout)
        self.classify = nn.Sequential(nn.ReLU(), Dropout(dropout), Linear(2 * width, classes))

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        first, context = self.inputs(features, present).tensor_split([self.entries[0]], -2)
        queries = torch.where(present[..., 0, None, None], first, broadcast_over_batch(self.substitute, 2))
        several = len(self.entries) > 1
        attended = self.attend(queries, context, present) if several else torch.zeros_like(queries)
        return self.classify(torch.cat([(queries + attended).mean(-2), attended.mean(-2)], -1))

    def attend(self, queries: torch.Tensor, tokens: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return the attended values (..., Q, width) of queries over tokens (..., K, width) of present modalities."""
        mask = torch.cat(
            [
                present[..., modality, None].expand(*present.shape[:-1], entries)
                for modality, entries in enumerate(self.entries)
                if modality > 0
            ],
            -1,
        )
        keys, values = self.key(tokens), self.value(tokens)
        scores = self.query(queries) @ keys.mT / keys.shape[-1] ** 0.5
        weights = scores.masked_fill(~mask.unsqueeze(-2), -1e9).softmax(-1)
        attended = self.dropout(weights @ values)
        return attended * mask.any(-1)[..., None, None].to(attended.dtype)


build = CrossAttentionHead

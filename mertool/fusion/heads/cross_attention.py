"""Cross-attention guided by the first store (audio): its spans ask, the spans of the others answer.

Each entry of a part (a span of a frame store, a layer of a pooled one) is a token: the projected features and a learned
position. Tokens of the first part are the queries, those of the other parts keys and values (scaled dot products,
Vaswani et al., 2017), and what a query found is added to it. Where the first part is absent, one learned token asks
in its place; where all others are, nothing is added. The mean over the queries and the mean of what they found are
classified together.
"""

import torch
from torch import nn

from mertool.fusion.heads._inputs import Features, Head, Standardizer
from mertool.fusion.heads._layers import Dropout, Linear, blank, by_clip


def build(shapes: list[tuple[int, int]], classes: int, width: int, dropout: float) -> Head:
    return CrossAttentionHead(shapes, classes, width, dropout)


class Tokens(nn.Module):
    """From features, a list of (..., L, D), to tokens (..., T, width), those of the first part first."""

    def __init__(self, shapes: list[tuple[int, int]], width: int, dropout: float):
        super().__init__()
        self.normalise = Standardizer(shapes)
        self.projections = nn.ModuleList(
            nn.Sequential(Dropout(dropout), Linear(channels, width), nn.ReLU(), Dropout(dropout), Linear(width, width))
            for _, channels in shapes
        )
        self.positions = nn.ParameterList([nn.Parameter(0.02 * torch.randn(entries, width)) for entries, _ in shapes])

    def forward(self, features: Features, present: torch.Tensor) -> torch.Tensor:
        tokens = []
        for number, (values, project) in enumerate(zip(features, self.projections, strict=True)):
            found = project(self.normalise(number, values)) + by_clip(self.positions[number], 2)
            there = present[..., number, None].expand(found.shape[:-1])
            tokens.append(blank(found, there, self.training))
        return torch.cat(tokens, -2)


class CrossAttentionHead(Head):
    """See the top of this file."""

    def __init__(self, shapes: list[tuple[int, int]], classes: int, width: int, dropout: float):
        super().__init__(Tokens(shapes, width, dropout))
        self.entries = [entries for entries, _ in shapes]
        self.substitute = nn.Parameter(0.02 * torch.randn(1, width))
        self.query, self.key, self.value = (Linear(width, width) for _ in range(3))
        self.dropout = Dropout(dropout)
        self.classify = nn.Sequential(nn.ReLU(), Dropout(dropout), Linear(2 * width, classes))

    def vectors(self, embedded: torch.Tensor) -> torch.Tensor:
        return torch.stack([tokens.mean(-2) for tokens in embedded.split(self.entries, -2)], -2)

    def judge(self, embedded: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        own, others = embedded.tensor_split([self.entries[0]], -2)
        asks = torch.where(present[..., 0, None, None], own, by_clip(self.substitute, 2))
        found = self.look(asks, others, present) if len(self.entries) > 1 else torch.zeros_like(asks)
        return self.classify(torch.cat([(asks + found).mean(-2), found.mean(-2)], -1))

    def look(self, asks: torch.Tensor, others: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """What each query (..., Q, width) finds among tokens (..., K, width) of the parts that are present."""
        there = torch.cat(
            [
                present[..., number, None].expand(*present.shape[:-1], entries)
                for number, entries in enumerate(self.entries)
                if number
            ],
            -1,
        )
        keys, values = self.key(others), self.value(others)
        scores = self.query(asks) @ keys.mT / keys.shape[-1] ** 0.5
        weights = scores.masked_fill(~there.unsqueeze(-2), -1e9).softmax(-1)
        found = self.dropout(weights @ values)
        return found * there.any(-1)[..., None, None].to(found.dtype)

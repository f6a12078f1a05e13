"""The attention fusion of MERTools as its code has it (MER2023 and MER2024 baselines, `attention.py` there).

Per modality: dropout on the input, then three linear layers with ReLU. The same on the concatenated vectors, and one
linear layer, give the weights, without softmax. The weighted sum is classified by a linear layer. Features are not
standardised, and an absent modality is a vector of zeros. The head takes one vector per modality: several layers or
spans are averaged, as MERTools averages the features of frames.
"""

import torch
from torch import nn

from mertool.fusion.heads._layers import Dropout, Linear, zero_absent
from mertool.fusion.heads._projection import FusionHead, Shapes


class MertoolsHead(FusionHead):
    """The official baseline, with its number of parameters."""

    def __init__(self, shapes: Shapes, *, classes: int, width: int, dropout: float):
        super().__init__(nn.ModuleList(_mlp(channels, width, dropout) for _, channels in shapes))
        self.attention = _mlp(len(shapes) * width, width, dropout)
        self.weigh = Linear(width, len(shapes))
        self.classify = Linear(width, classes)

    def fit_standardizer(self, features: list[torch.Tensor], present: torch.Tensor) -> None:
        """Do nothing: the official code takes features as they are."""

    def forward(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        hidden = torch.stack(
            [
                encode(zero_absent(_mean(values), present[..., modality], training=self.training))
                for modality, (values, encode) in enumerate(zip(features, self.inputs, strict=True))
            ],
            dim=-2,
        )
        weights = self.weigh(self.attention(hidden.flatten(-2)))
        return self.classify((weights.unsqueeze(-1) * hidden).sum(-2))


def _mean(values: torch.Tensor) -> torch.Tensor:
    """Return values (..., L, D) averaged over L."""
    return values[..., 0, :] if values.shape[-2] == 1 else values.mean(-2)


def _mlp(inputs: int, width: int, dropout: float) -> nn.Sequential:
    layers = [layer for size in (inputs, width, width) for layer in (Linear(size, width), nn.ReLU())]
    return nn.Sequential(Dropout(dropout), *layers)


build = MertoolsHead

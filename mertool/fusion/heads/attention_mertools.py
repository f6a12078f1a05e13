"""The attention fusion of MERTools (MER2023/2024 baselines, `attention.py` there), as its code has it.

Per modality: dropout on the input, three linear layers with ReLU. The same on their concatenation gives a vector from
which a linear layer makes the weights, without softmax; the weighted sum is classified by a linear layer. Features are
not normalised, and an absent modality is a vector of zeros. It takes one vector per modality: several entries (layers
or spans) are averaged, as the features of frames are there.
"""

import torch
from torch import nn

from mertool.fusion.heads._inputs import Features, Head
from mertool.fusion.heads._layers import Dropout, Linear, blank


def build(shapes: list[tuple[int, int]], classes: int, width: int, dropout: float) -> Head:
    return MertoolsHead(shapes, classes, width, dropout)


class MertoolsHead(Head):
    """See the top of this file."""

    def __init__(self, shapes: list[tuple[int, int]], classes: int, width: int, dropout: float):
        super().__init__(nn.ModuleList(_encoder(channels, width, dropout) for _, channels in shapes))
        self.attention = _encoder(len(shapes) * width, width, dropout)
        self.weigh = Linear(width, len(shapes))
        self.classify = Linear(width, classes)

    def fit_normaliser(self, features: Features, present: torch.Tensor) -> None:
        """There is none."""

    def embed(self, features: Features, present: torch.Tensor) -> torch.Tensor:
        hidden = []
        for number, (values, encode) in enumerate(zip(features, self.inputs, strict=True)):
            vector = values[..., 0, :] if values.shape[-2] == 1 else values.mean(-2)
            hidden.append(encode(blank(vector, present[..., number], self.training)))
        return torch.stack(hidden, dim=-2)

    def judge(self, embedded: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        weights = self.weigh(self.attention(embedded.flatten(-2)))
        return self.classify((weights.unsqueeze(-1) * embedded).sum(-2))


def _encoder(inputs: int, width: int, dropout: float) -> nn.Sequential:
    layers = [layer for size in (inputs, width, width) for layer in (Linear(size, width), nn.ReLU())]
    return nn.Sequential(Dropout(dropout), *layers)

"""Learned layer weights: one linear classifier on a weighted sum of all layers.

SUPERB reads encoders in this way (Yang et al., 2021, "SUPERB: Speech processing Universal PERformance Benchmark"). The
weights are a softmax over layers. Unlike in SUPERB, each layer is first standardised by the training clips, so that
a weight compares what layers contribute and not how large their values are.

Shapes: M members, L layers, N clips, D channels, C outputs (the classes, or 1 for a number).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mertool.probing.minibatch import MinibatchConfig, Objective, minimize
from mertool.probing.standardize import safe_std


@dataclass(frozen=True, kw_only=True)
class LayerWeightsConfig(MinibatchConfig):
    """Hyperparameters; `layer_learning_rate` is that of the layer weights, which have no weight decay."""

    min_steps: int = 300
    layer_learning_rate: float = 2e-2


@dataclass(frozen=True)
class _Model:
    """M members: classifier weight (M, C, D), bias (M, C), layer logits (M, L), and the standardisation (M, L, D)."""

    weight: torch.Tensor
    bias: torch.Tensor
    layer_logits: torch.Tensor
    mean: torch.Tensor
    inv_std: torch.Tensor

    @classmethod
    def initialise(
        cls, values: torch.Tensor, train_masks: torch.Tensor, *, n_outputs: int, seeds: list[int]
    ) -> "_Model":
        """Draw small classifier weights for each seed; all layers begin with equal weights."""
        _, n_layers, n_channels = values.shape
        drawn = [0.01 * torch.randn(n_outputs, n_channels, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return cls(
            torch.stack(drawn).to(values.device).requires_grad_(),
            values.new_zeros(len(seeds), n_outputs, requires_grad=True),
            values.new_zeros(len(seeds), n_layers, requires_grad=True),
            *_standardization(values, train_masks),
        )

    def parameter_groups(self, config: LayerWeightsConfig) -> list[dict[str, Any]]:
        """Return the parameters as torch's optimisers take them."""
        return [
            {"params": [self.weight, self.bias]},
            {"params": [self.layer_logits], "lr": config.layer_learning_rate, "weight_decay": 0.0},
        ]

    def layer_weights(self) -> torch.Tensor:
        """Return the weights of the layers (M, L), which sum to 1."""
        return self.layer_logits.softmax(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (M, C, n) of raw features (n, L, D).

        Standardisation and weighted sum are linear, so they are folded into the classifier: one product instead of a
        standardised copy of the features for each member.
        """
        scaled = (self.layer_weights()[..., None] * self.inv_std)[:, None] * self.weight[:, :, None]  # (M, C, L, D)
        shift = self.bias - (scaled * self.mean[:, None]).sum((2, 3))
        logits = scaled.flatten(0, 1).flatten(1) @ x.flatten(1).T
        return logits.view(*self.bias.shape, -1) + shift[..., None]


def train_layer_weights(
    values: torch.Tensor,
    labels: torch.Tensor,
    train_masks: torch.Tensor,
    *,
    n_outputs: int,
    seeds: list[int],
    config: LayerWeightsConfig,
    progress: Callable[[int, int], None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train M members and return their layer weights (M, L) and the outputs (M, C, N) for all clips.

    values (N, L, D) as stored; labels (N,); train_masks (M, N) is 1 where a clip is in a member's training set.
    """
    model = _Model.initialise(values, train_masks, n_outputs=n_outputs, seeds=seeds)

    objective = Objective.of(labels, train_masks)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        rows = rows.to(values.device)
        return objective.loss(model.forward(values[rows]), rows).sum()

    minimize(loss_of, model.parameter_groups(config), config, n_clips=len(values), seed=seeds[0], progress=progress)
    with torch.no_grad():
        return model.layer_weights(), objective.restore(model.forward(values))


def _standardization(values: torch.Tensor, train_masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and inverse standard deviation (M, L, D) of each member's training clips.

    Layer by layer, since a shifted copy of all features would double the memory. The shift by the mean of all clips
    keeps the digits of sums of squares in float32.
    """
    sample_weight = train_masks / train_masks.sum(1, keepdim=True)
    shift = values.mean(0)
    means, squares = [], []
    for layer in range(values.shape[1]):
        x = values[:, layer] - shift[layer]
        means.append(sample_weight @ x)
        squares.append(sample_weight @ x.square())
    mean = torch.stack(means, 1)
    inv_std = safe_std(torch.stack(squares, 1) - mean.square(), mean + shift).reciprocal()
    return mean + shift, inv_std

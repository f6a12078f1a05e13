"""A small multilayer perceptron as a probe: layers x folds x seeds as stacked weights, trained at once.

One hidden layer, ReLU and dropout. Every member sees the same batches; clips outside its training set have no weight in
its loss. The initial weights, batches and dropout of a member depend on its seed and not on the members and layers
beside it.

Shapes: B layers, M members, N clips, D channels, H hidden units, C outputs (the classes, or 1 for a number).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mertool.probing.minibatch import MinibatchConfig, Objective, minimize
from mertool.probing.standardize import StandardizedFeatures, standardize


@dataclass(frozen=True, kw_only=True)
class MlpConfig(MinibatchConfig):
    """Hyperparameters of the perceptron and its training."""

    hidden: int = 64
    dropout: float = 0.2
    min_steps: int = 200


@dataclass(frozen=True)
class _Weights:
    """Weights of M perceptrons on each of B layers: (B, M, H, D), (B, M, H), (B, M, C, H), (B, M, C)."""

    hidden: torch.Tensor
    hidden_bias: torch.Tensor
    output: torch.Tensor
    output_bias: torch.Tensor

    @classmethod
    def initialise(cls, features: torch.Tensor, seeds: list[int], *, hidden: int, n_outputs: int) -> "_Weights":
        """Draw weights uniformly, as torch.nn.Linear does; one draw per seed serves every layer."""
        n_layers, _, n_channels = features.shape
        shapes = [(hidden, n_channels), (hidden,), (n_outputs, hidden), (n_outputs,)]
        fan_in = [n_channels, n_channels, hidden, hidden]
        drawn: list[list[torch.Tensor]] = [[] for _ in shapes]
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for tensors, shape, fan in zip(drawn, shapes, fan_in, strict=True):
                tensors.append((2 * torch.rand(shape, generator=generator) - 1) / fan**0.5)
        stacked = (torch.stack(tensors).to(features.device) for tensors in drawn)
        return cls(*(tensor.expand(n_layers, *tensor.shape).clone().requires_grad_() for tensor in stacked))


def train_mlp(
    features: torch.Tensor,
    labels: torch.Tensor,
    train_masks: torch.Tensor,
    *,
    n_outputs: int,
    seeds: list[int],
    config: MlpConfig,
    progress: Callable[[int, int], None],
) -> torch.Tensor:
    """Train M members on each layer and return the outputs (B, M, C, N) for all clips.

    features (B, N, D); labels (N,); train_masks (M, N) is 1 where a clip is in a member's training set; seeds (M,).
    """
    scaled = standardize(features, train_masks)
    weights = _Weights.initialise(features, seeds, hidden=config.hidden, n_outputs=n_outputs)
    generator = torch.Generator(features.device).manual_seed(seeds[0])

    objective = Objective.of(labels, train_masks)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        rows = rows.to(features.device)
        # One mask per member for all layers, so that layers are compared under the same dropout.
        shape = (len(seeds), config.hidden, len(rows))
        is_active = torch.rand(shape, device=features.device, generator=generator) >= config.dropout
        dropout_mask = is_active.float() / (1 - config.dropout)
        outputs = _forward(weights, scaled, scaled.x[:, rows], dropout_mask=dropout_mask)
        # The sum over members: each has its own weights, so their gradients do not mix.
        return objective.loss(outputs, rows).sum()

    parameters = list(vars(weights).values())
    minimize(loss_of, parameters, config, n_clips=features.shape[1], seed=seeds[0], progress=progress)
    with torch.no_grad():
        return objective.restore(_forward(weights, scaled, scaled.x, dropout_mask=None))


def _forward(
    weights: _Weights, scaled: StandardizedFeatures, x: torch.Tensor, *, dropout_mask: torch.Tensor | None
) -> torch.Tensor:
    """Return logits (B, M, C, n) of features x (B, n, D); `dropout_mask` (M, H, n) multiplies the hidden units."""
    weight, bias = scaled.fold_into_linear(weights.hidden, weights.hidden_bias)
    hidden = (weight.flatten(1, 2) @ x.mT + bias.flatten(1)[..., None]).relu()
    hidden = hidden.view(*weights.hidden_bias.shape, -1)
    if dropout_mask is not None:
        hidden = hidden * dropout_mask
    return weights.output @ hidden + weights.output_bias[..., None]

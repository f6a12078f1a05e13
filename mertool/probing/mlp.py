"""A small multilayer perceptron as a probe: layers x folds x seeds as stacked weights, trained at once.

One hidden layer, ReLU, dropout, AdamW with a cosine schedule and a fixed number of steps, so that nothing is
chosen on held-out clips. Every member sees the same batches and leaves out of its loss what it must not
see; a member's start, batches and dropout depend on its seed and not on what is trained beside it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mertool.probing.product import product
from mertool.probing.standardize import StandardizedFeatures, scale


@dataclass(frozen=True)
class MlpSchedule:
    """`steps` is a least number: it is ten passes over the clips where these are more."""

    hidden: int = 64
    dropout: float = 0.2
    steps: int = 200
    batch: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.01

    def steps_for(self, clips: int) -> int:
        """At least `steps`, at least ten passes."""
        return max(self.steps, 10 * -(-clips // self.batch))


def train_mlp(
    features: torch.Tensor,
    labels: torch.Tensor,
    trains: torch.Tensor,
    classes: int,
    seeds: list[int],
    schedule: MlpSchedule,
    progress: Callable[[int, int], None],
) -> torch.Tensor:
    """Logits (B, M, C, N) of all clips by M members on each of B layers.

    features (B, N, D); labels (N,); trains (M, N) is 1 where a clip is in a member's training part; seeds (M,).
    """
    scaled = scale(features, trains)
    layers, clips, channels = features.shape
    weights = _start(layers, channels, classes, seeds, schedule, features.device)
    steps, batch = schedule.steps_for(clips), min(schedule.batch, clips)
    optimizer = torch.optim.AdamW(weights, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(seeds[0])
    drops = torch.Generator(features.device).manual_seed(seeds[0])
    for step, rows in enumerate(batches(clips, batch, steps, order)):
        rows = rows.to(features.device)
        kept = torch.rand(len(seeds), schedule.hidden, batch, device=features.device, generator=drops)
        kept = (kept >= schedule.dropout).float() / (1 - schedule.dropout)
        logits = _forward(weights, scaled, scaled.x[:, rows], kept)
        loss = mean_entropy(logits, labels[rows], trains[:, rows]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
        progress(step + 1, steps)
    with torch.no_grad():
        return _forward(weights, scaled, scaled.x, None)


def _start(
    layers: int, channels: int, classes: int, seeds: list[int], schedule: MlpSchedule, device: torch.device
) -> list[torch.Tensor]:
    """Weights (B, M, H, D), (B, M, H), (B, M, C, H), (B, M, C): uniform as torch's Linear, alike for every layer."""
    sizes = [(schedule.hidden, channels), (schedule.hidden,), (classes, schedule.hidden), (classes,)]
    bounds = [channels, channels, schedule.hidden, schedule.hidden]
    made: list[list[torch.Tensor]] = [[] for _ in sizes]
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for found, size, fan in zip(made, sizes, bounds, strict=True):
            found.append((2 * torch.rand(size, generator=generator) - 1) / fan**0.5)
    stacked = (torch.stack(found).to(device) for found in made)
    return [one.expand(layers, *one.shape).clone().requires_grad_() for one in stacked]


def _forward(
    weights: list[torch.Tensor], scaled: StandardizedFeatures, x: torch.Tensor, kept: torch.Tensor | None
) -> torch.Tensor:
    """Logits (B, M, C, n) of features x (B, n, D); `kept` (M, H, n) scales hidden units."""
    first, first_bias, second, second_bias = weights
    weight, bias = scaled.fold_in(first, first_bias)
    hidden = (product(weight.flatten(1, 2), x) + bias.flatten(1)[..., None]).relu()
    hidden = hidden.view(*first_bias.shape, -1)
    if kept is not None:
        hidden = hidden * kept
    return second @ hidden + second_bias[..., None]


def batches(clips: int, batch: int, steps: int, order: torch.Generator) -> Iterator[torch.Tensor]:
    """`steps` batches of row numbers (batch,); each pass goes over the clips in a new order."""
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(left) < batch:
            left = torch.randperm(clips, generator=order)
        yield left[:batch]
        left = left[batch:]


def mean_entropy(logits: torch.Tensor, labels: torch.Tensor, trains: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy (..., M) of logits (..., M, C, n) over the clips that `trains` (M, n) marks."""
    true = labels.expand(*logits.shape[:-2], 1, -1)
    entropy = logits.logsumexp(-2) - logits.gather(-2, true)[..., 0, :]
    return (entropy * trains).sum(-1) / trains.sum(-1).clamp_min(1)

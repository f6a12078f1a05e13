"""Learned layer weights: one classifier on a weighted sum of all layers, as SUPERB reads encoders (Yang et al., 2021).

The weights are a softmax over layers; each layer is standardised by a member's own training clips first, so that a
weight compares what layers say and not how large their values are. A linear layer follows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mertool.probing.mlp import batches, mean_entropy
from mertool.probing.product import product
from mertool.probing.standardize import deviation_of


@dataclass(frozen=True)
class WeightSchedule:
    """AdamW with a cosine schedule and a fixed number of steps (at least ten passes over the clips)."""

    steps: int = 300
    batch: int = 256
    learning_rate: float = 2e-3
    layer_rate: float = 2e-2
    weight_decay: float = 0.01

    def steps_for(self, clips: int) -> int:
        """At least `steps`, at least ten passes."""
        return max(self.steps, 10 * -(-clips // self.batch))


def train_layer_weights(
    values: torch.Tensor,
    labels: torch.Tensor,
    trains: torch.Tensor,
    classes: int,
    seeds: list[int],
    schedule: WeightSchedule,
    progress: Callable[[int, int], None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of the layers (M, L), each row of sum 1, and logits (M, C, N) of all clips, of M members at once.

    values (N, L, D) as stored; labels (N,); trains (M, N) is 1 where a clip is in a member's training part.
    """
    clips, layers, channels = values.shape
    centre, rate = _standards(values, trains)
    turns = [torch.Generator().manual_seed(seed) for seed in seeds]
    weight = torch.stack([0.01 * torch.randn(classes, channels, generator=turn) for turn in turns]).to(values.device)
    weight.requires_grad_()
    bias = values.new_zeros(len(seeds), classes, requires_grad=True)
    mix = values.new_zeros(len(seeds), layers, requires_grad=True)
    groups: list[dict[str, Any]] = [
        {"params": [weight, bias], "weight_decay": schedule.weight_decay},
        {"params": [mix], "lr": schedule.layer_rate, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate)
    steps = schedule.steps_for(clips)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def forward(x: torch.Tensor) -> torch.Tensor:
        # Standardisation and mixture are linear: they join the classifier, and one product is left.
        scaled = (mix.softmax(1)[..., None] * rate)[:, None] * weight[:, :, None]  # (M, C, L, D)
        shift = bias - (scaled * centre[:, None]).sum((2, 3))
        logits = product(scaled.flatten(0, 1).flatten(1)[None], x.flatten(1)[None])
        return logits.view(len(seeds), classes, -1) + shift[..., None]

    order = torch.Generator().manual_seed(seeds[0])
    for step, rows in enumerate(batches(clips, min(schedule.batch, clips), steps, order)):
        rows = rows.to(values.device)
        loss = mean_entropy(forward(values[rows]), labels[rows], trains[:, rows]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
        progress(step + 1, steps)
    with torch.no_grad():
        return mix.softmax(1), forward(values)


def _standards(values: torch.Tensor, trains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and inverse deviation (M, L, D) of each member's training clips."""
    share = trains / trains.sum(1, keepdim=True)
    shift = values.mean(0)
    centre, square = [], []
    for layer in range(values.shape[1]):
        x = values[:, layer] - shift[layer]
        centre.append(share @ x)
        square.append(share @ x.square())
    centres = torch.stack(centre, 1)
    rate = deviation_of(torch.stack(square, 1) - centres.square(), centres + shift).reciprocal()
    return centres + shift, rate

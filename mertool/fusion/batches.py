"""Batches of many members at once: each member goes through its own rows in its own order."""

from dataclasses import dataclass

import numpy as np
import torch

from mertool.fusion.random_bits import Noise

Features = list[torch.Tensor]  # one (N, L, D) per modality
UNUSED = -100  # a label that is none: the row is not learned from


@dataclass(frozen=True)
class Batch:
    """features: list of (M, B, L, D); present (M, B, P); labels and weights (M, B), a row of weight 0 is only filling.

    Where clips are mixed, `others` (M, B) are the labels of what was mixed in, and `share` (M, B) is the row's own.
    """

    features: Features
    present: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    others: torch.Tensor | None = None
    share: torch.Tensor | None = None


@dataclass(frozen=True)
class Epoch:
    """Rows, labels and weights, each (M, steps x batch), of one pass of members of equally many steps."""

    rows: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


class Orders:
    """The orders of members: a new one each epoch, from a generator of the member's own seed."""

    def __init__(self, rows: list[torch.Tensor], labels: torch.Tensor, weights: torch.Tensor, seeds: list[int]):
        """rows: of each member. labels and weights (M, N)."""
        self.rows = [mine.cpu() for mine in rows]
        self.labels, self.weights = labels, weights
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def epoch(self, size: int) -> Epoch:
        """The next pass; filled up to whole batches of `size` with a row of the member's own that counts nothing."""
        length = -(-max(map(len, self.rows)) // size) * size
        rows = torch.zeros((len(self.rows), length), dtype=torch.int64)
        real = torch.zeros((len(self.rows), length), dtype=torch.bool)
        for number, (mine, generator) in enumerate(zip(self.rows, self.generators, strict=True)):
            rows[number] = mine[0] if len(mine) else 0
            rows[number, : len(mine)] = mine[torch.randperm(len(mine), generator=generator)]
            real[number, : len(mine)] = True
        rows, real = rows.to(self.labels.device), real.to(self.labels.device)
        labels = self.labels.gather(1, rows).masked_fill(~real, UNUSED)
        weights = self.weights.gather(1, rows) * (labels != UNUSED)
        return Epoch(rows, labels, weights)


def take(features: Features, present: torch.Tensor, rows: torch.Tensor) -> tuple[Features, torch.Tensor]:
    """Features and presence of rows (M, B)."""
    flat = rows.flatten()
    found = [values.index_select(0, flat).unflatten(0, rows.shape) for values in features]
    return found, present.index_select(0, flat).unflatten(0, rows.shape)


def drop_modalities(present: torch.Tensor, share: float, noise: Noise) -> torch.Tensor:
    """Hide each present modality (..., P) with probability `share`, but never the last one of a clip."""
    if share <= 0 or present.shape[-1] == 1:
        return present
    kept = present & (noise.uniform(present.shape) >= share)
    return torch.where(kept.any(-1, keepdim=True), kept, present)


def jitter(features: Features, scales: list[torch.Tensor], size: float, noise: Noise) -> Features:
    """Add normal noise of `size` deviations; scales: deviations (M, 1, L, D) of each modality's channels."""
    pairs = zip(features, scales, strict=True)
    return [values + size * scale * noise.normal(values.shape) for values, scale in pairs]


def mix(batch: Batch, strength: float, noise: Noise) -> Batch:
    """Mixup (Zhang et al., 2018): each row becomes a mixture with the next one, where both have the same modalities.

    One share per member and batch, from Beta(strength, strength).
    """
    partner = [values.roll(-1, 1) for values in batch.features]
    others = batch.labels.roll(-1, 1)
    alike = (batch.present == batch.present.roll(-1, 1)).all(-1) & (others != UNUSED) & (batch.labels != UNUSED)
    drawn = noise.beta(strength, (len(batch.labels), 1)).expand(batch.labels.shape)
    share = torch.where(alike, drawn, torch.ones_like(drawn))
    own = share[..., None, None]
    mixed = [own * values + (1 - own) * other for values, other in zip(batch.features, partner, strict=True)]
    return Batch(mixed, batch.present, batch.labels, batch.weights, others, share)


def class_weights(labels: torch.Tensor, rows: torch.Tensor, classes: int) -> torch.Tensor:
    """Weight (N,) of each row so that all classes of a member's rows weigh alike; labels (N,)."""
    used = labels[rows]
    counts = np.maximum(torch.bincount(used[used != UNUSED], minlength=classes).cpu().numpy(), 1)
    weight = torch.from_numpy((counts.mean() / counts).astype(np.float32)).to(labels.device)
    return weight[labels.clamp(min=0)]

"""Probes that are trained by gradient steps on random batches, many members at once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mertool.probing.standardize import safe_std

MIN_EPOCHS = 10


@dataclass(frozen=True, kw_only=True)
class MinibatchConfig:
    """Hyperparameters of AdamW with a cosine schedule; `min_steps` grows to ten passes over the clips."""

    min_steps: int
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.01

    def count_steps(self, n_clips: int) -> int:
        """Return `min_steps`, or the steps of ten passes over the clips if these are more."""
        return max(self.min_steps, MIN_EPOCHS * -(-n_clips // self.batch_size))


def minimize(
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    parameters: list[Any],
    config: MinibatchConfig,
    *,
    n_clips: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> None:
    """Minimise `loss_of(rows)` over random batches of row numbers; `parameters` are as torch's optimisers take them.

    The number of steps is fixed, so that nothing is chosen on held-out clips.
    """
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    steps = config.count_steps(n_clips)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    batches = random_batches(n_clips, min(config.batch_size, n_clips), steps, generator=generator)
    for step, rows in enumerate(batches, 1):
        optimizer.zero_grad()
        loss_of(rows).backward()
        optimizer.step()
        scheduler.step()
        progress(step, steps)


def random_batches(n_clips: int, batch_size: int, steps: int, *, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield `steps` batches of row numbers (batch_size,); each pass goes over the clips in a new order.

    Rows left over at the end of a pass are skipped, so that all batches have one size.
    """
    remaining = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(remaining) < batch_size:
            remaining = torch.randperm(n_clips, generator=generator)
        yield remaining[:batch_size]
        remaining = remaining[batch_size:]


def mean_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, train_masks: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy (..., M) of logits (..., M, C, n) over the clips that train_masks (M, n) marks."""
    label_logits = logits.gather(-2, labels.expand(*logits.shape[:-2], 1, -1))[..., 0, :]
    entropy = logits.logsumexp(-2) - label_logits
    return (entropy * train_masks).sum(-1) / train_masks.sum(-1).clamp_min(1)


def mean_squared_error(outputs: torch.Tensor, numbers: torch.Tensor, train_masks: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error (..., M) of outputs (..., M, 1, n) over the clips that train_masks (M, n) marks."""
    error = (outputs[..., 0, :] - numbers).square()
    return (error * train_masks).sum(-1) / train_masks.sum(-1).clamp_min(1)


@dataclass(frozen=True)
class Objective:
    """The loss of M members: cross-entropy for classes, squared error for numbers.

    Attributes:
        labels: Class indices (N,), or numbers (M, N) that each member has standardised by its training clips.
        train_masks: (M, N), 1 where a clip is in a member's training set.
        mean, std: Of the numbers (M, 1); not used for classes.
    """

    labels: torch.Tensor
    train_masks: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, labels: torch.Tensor, train_masks: torch.Tensor) -> "Objective":
        """Return the objective for class indices or, if they are floating-point, for numbers (N,)."""
        if not labels.is_floating_point():
            none = labels.new_zeros(1)
            return cls(labels, train_masks, none, none)
        weight = train_masks / train_masks.sum(1, keepdim=True)
        numbers = labels.float()
        mean = (weight @ numbers)[:, None]
        std = safe_std((weight * (numbers - mean).square()).sum(1, keepdim=True), mean)
        return cls((numbers - mean) / std, train_masks, mean, std)

    def loss(self, outputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the mean loss (..., M) of outputs (..., M, C, n) for the clips in rows (n,)."""
        masks = self.train_masks[:, rows]
        if self.labels.is_floating_point():
            return mean_squared_error(outputs, self.labels[:, rows], masks)
        return mean_cross_entropy(outputs, self.labels[rows], masks)

    def restore(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return outputs (..., M, C, N) on the scale of the labels."""
        if self.labels.is_floating_point():
            return outputs * self.std[..., None] + self.mean[..., None]
        return outputs

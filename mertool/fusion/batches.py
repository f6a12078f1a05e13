"""Batches of many members at once: each member goes through its own rows in its own order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mertool.learning.labelled_clips import IGNORE_INDEX


@dataclass(frozen=True)
class Batch:
    """B rows of each of M members: rows, labels and loss weights, each (M, B).

    Labels are class indices or numbers. A row that only pads a member's last batch has the label IGNORE_INDEX and
    weight 0.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


class MemberSampler:
    """Shuffles the training rows of each member in every epoch, with a generator of the member's own seed.

    Args:
        rows: Training rows of each member. The members need equally many batches, not equally many rows.
        labels: Labels (M, N) of all rows, for each member.
        weights: Loss weights (M, N) of all rows, for each member.
        seeds: One seed per member.
        batch: Rows of a member in a batch.
    """

    def __init__(
        self,
        *,
        rows: Sequence[torch.Tensor],
        labels: torch.Tensor,
        weights: torch.Tensor,
        seeds: Sequence[int],
        batch: int,
    ):
        # The order is drawn on the CPU, so that it is the same on every device.
        self.rows = [member_rows.cpu() for member_rows in rows]
        self.labels, self.weights, self.batch = labels, weights, batch
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    @property
    def steps(self) -> int:
        """Number of batches in an epoch."""
        return -(-max(map(len, self.rows)) // self.batch)

    def epoch(self) -> Iterator[Batch]:
        """Yield the batches of the next epoch."""
        length = self.steps * self.batch
        rows = torch.zeros((len(self.rows), length), dtype=torch.int64)
        is_padding = torch.ones((len(self.rows), length), dtype=torch.bool)
        for member, (member_rows, generator) in enumerate(zip(self.rows, self.generators, strict=True)):
            count = len(member_rows)
            rows[member] = member_rows[0] if count else 0
            rows[member, :count] = member_rows[torch.randperm(count, generator=generator)]
            is_padding[member, :count] = False
        rows, is_padding = rows.to(self.labels.device), is_padding.to(self.labels.device)
        labels = self.labels.gather(1, rows).masked_fill(is_padding, IGNORE_INDEX)
        has_label = ~is_padding if labels.is_floating_point() else labels != IGNORE_INDEX
        weights = self.weights.gather(1, rows) * has_label
        for start in range(0, length, self.batch):
            columns = slice(start, start + self.batch)
            yield Batch(rows[:, columns], labels[:, columns], weights[:, columns])


def drop_modalities(present: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
    """Return `present` (..., P) with each modality hidden with probability `rate`, but never the last one of a clip."""
    if rate <= 0 or present.shape[-1] == 1:
        return present
    remaining = present & (torch.rand(present.shape, generator=generator, device=present.device) >= rate)
    return torch.where(remaining.any(-1, keepdim=True), remaining, present)


def class_weights(labels: torch.Tensor, rows: torch.Tensor, classes: int) -> torch.Tensor:
    """Return loss weights (N,) for labels (N,), inverse to the frequency of the class among a member's `rows`."""
    used = labels[rows]
    counts = np.maximum(torch.bincount(used[used != IGNORE_INDEX], minlength=classes).cpu().numpy(), 1)
    weights = torch.from_numpy((counts.mean() / counts).astype(np.float32)).to(labels.device)
    return weights[labels.clamp(min=0)]

"""Minibatches for probes that are trained by gradient steps, many members at once."""

from collections.abc import Iterator

import torch

MIN_EPOCHS = 10


def count_steps(n_clips: int, batch_size: int, min_steps: int) -> int:
    """Return `min_steps`, or the steps of ten passes over the clips if these are more."""
    return max(min_steps, MIN_EPOCHS * -(-n_clips // batch_size))


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

"""What members minimise, each its own: cross-entropy, and on request an agreement of its modalities."""

import torch
from torch import nn

from mertool.fusion.batches import UNUSED, Batch
from mertool.fusion.heads import Head


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """Weighted mean over rows (M,) of members' cross-entropies; logits (M, B, C), labels and weights (M, B)."""
    each = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing, ignore_index=UNUSED
    )
    return (each.view(labels.shape) * weights).sum(1) / weights.sum(1).clamp(min=1e-12)


def contrast(vectors: torch.Tensor, present: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Agreement of the modalities of a clip (M,), as NT-Xent (Chen et al., 2020) between modalities.

    vectors (M, B, P, W), present (M, B, P). Vectors are L2-normalised. For each, the others of its clip are the
    positives, everything else in the member's batch is a negative, and it is not compared with itself.
    """
    _, clips, parts, _ = vectors.shape
    unit = nn.functional.normalize(vectors.flatten(1, 2), dim=-1)
    there = present.flatten(1)
    clip = torch.arange(clips, device=vectors.device).repeat_interleave(parts)
    itself = torch.eye(clips * parts, dtype=torch.bool, device=vectors.device)
    positive = (clip == clip[:, None]) & ~itself & there.unsqueeze(1) & there.unsqueeze(2)
    alike = (unit @ unit.mT / temperature).masked_fill(itself | ~there.unsqueeze(1), -1e9).log_softmax(-1)
    count = positive.sum(-1)
    each = -(alike * positive).sum(-1) / count.clamp(min=1)
    return each.sum(1) / (count > 0).sum(1).clamp(min=1)


def losses(head: Head, batch: Batch, smoothing: float, agreement: float) -> torch.Tensor:
    """Loss (M,) of each member on its batch, to be minimised in the sum."""
    embedded = head.embed(batch.features, batch.present)
    logits = head.judge(embedded, batch.present)
    loss = cross_entropy(logits, batch.labels, batch.weights, smoothing)
    if batch.others is not None and batch.share is not None:  # mixup: the loss of both clips, each by its share
        first = cross_entropy(logits, batch.labels, batch.weights * batch.share, smoothing)
        kept, given = (batch.weights * batch.share).sum(1), (batch.weights * (1 - batch.share)).sum(1)
        second = cross_entropy(logits, batch.others, batch.weights * (1 - batch.share), smoothing)
        loss = (first * kept + second * given) / (kept + given).clamp(min=1e-12)
    if agreement:
        used = batch.present & (batch.weights > 0).unsqueeze(-1)
        loss = loss + agreement * contrast(head.vectors(embedded), used)
    return loss

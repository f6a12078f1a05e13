"""Weights of the trained members of an ensemble, and the logits that they give."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mertool.fusion.ensemble import ensemble_logits
from mertool.fusion.heads import HeadSpec
from mertool.fusion.modality_features import ModalityFeatures
from mertool.fusion.trainer import EnsembleMember, TrainedMember


@dataclass(frozen=True, kw_only=True)
class EnsembleWeights:
    """Members of one width and dropout rate.

    Attributes:
        head: Name of a file of `mertool/fusion/heads`.
        width: Hidden size.
        dropout: Dropout rate of the training.
        state: All tensors of the head by name, stacked, members on axis 0.
        fold: The fold that each member held out.
        seed: The seed of each member.
    """

    head: str
    width: int
    dropout: float
    state: dict[str, torch.Tensor]
    fold: tuple[int, ...]
    seed: tuple[int, ...]

    def __post_init__(self) -> None:
        counts = {len(self.fold), len(self.seed), *(len(value) for value in self.state.values())}
        if len(counts) != 1 or not self.fold:
            raise ValueError(f"members of uneven number: folds, seeds and tensors have {sorted(counts)}")


def group_by_shape(
    head: str, members: Sequence[EnsembleMember], trained: Sequence[TrainedMember]
) -> list[EnsembleWeights]:
    """Stack the members of one width and dropout rate, which one forward pass can score."""
    shapes: dict[tuple[int, float], list[int]] = {}
    for index, member in enumerate(members):
        shapes.setdefault((member.trial.width, member.trial.dropout), []).append(index)
    return [
        EnsembleWeights(
            head=head,
            width=width,
            dropout=dropout,
            state={name: torch.stack([trained[index].state[name] for index in indices]) for name in trained[0].state},
            fold=tuple(members[index].fold for index in indices),
            seed=tuple(members[index].seed for index in indices),
        )
        for (width, dropout), indices in shapes.items()
    ]


def member_logits(
    weights: Sequence[EnsembleWeights], features: ModalityFeatures, *, classes: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield the fold, the seed and the logits (N, C) of each member on any N clips."""
    for group in weights:
        head = HeadSpec(group.head, features.shapes, classes).build(width=group.width).to(features.device)
        logits = ensemble_logits(head, group.state, features).cpu().numpy()
        yield from zip(group.fold, group.seed, logits, strict=True)


def fold_logits(
    weights: Sequence[EnsembleWeights], features: ModalityFeatures, *, folds: int, classes: int
) -> np.ndarray:
    """Return the mean logits (F, N, C) of each fold's members on any N clips."""
    total = np.zeros((folds, len(features), classes), np.float32)
    count = np.zeros((folds, 1, 1), np.float32)
    for fold, _, logits in member_logits(weights, features, classes=classes):
        total[fold] += logits
        count[fold] += 1
    return total / count

"""Splits of the clips: one adapter per fold, trained without its clips, and one on all clips."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mertool.adapters import methods as peft_methods
from mertool.learning.folds import Folds


@dataclass(frozen=True, kw_only=True)
class AdapterSplit:
    """Rows of the labelled clips for one adapter.

    Attributes:
        name: Name of the adapter: `fold0`, `fold1`, ... or `final`.
        train: Rows it is trained on.
        held_out: Rows it is evaluated on; none for `final`.
    """

    name: str
    train: np.ndarray
    held_out: np.ndarray


def adapter_splits(folds: Folds, *, final: bool = True) -> list[AdapterSplit]:
    """Return one split per fold and, with `final`, one that trains on all folds."""
    splits = [
        AdapterSplit(name=f"fold{fold}", train=folds.train(fold), held_out=folds.held_out(fold))
        for fold in range(folds.count)
    ]
    if final:
        rows = np.arange(len(folds.fold_of))
        splits.append(AdapterSplit(name=peft_methods.FINAL, train=rows, held_out=rows[:0]))
    return splits


def join_held_out(splits: Sequence[AdapterSplit], logits: Sequence[np.ndarray]) -> np.ndarray:
    """Return logits (..., N, C) of all clips from those (..., H, C) of each split's held-out clips."""
    rows = np.concatenate([split.held_out for split in splits])
    return np.concatenate(logits, axis=-2)[..., np.argsort(rows), :]

"""Splits of the clips: one adapter per fold, trained without its clips, and one on all clips."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mertool.adapters import methods as peft_methods
from mertool.errors import MertoolError
from mertool.learning.folds import Folds, make_folds
from mertool.learning.labelled_clips import LabelledClips

DEVELOPMENT_FOLDS = 8  # of the training clips; one of them chooses the best epoch


@dataclass(frozen=True, kw_only=True)
class AdapterSplit:
    """Rows of the labelled clips for one adapter.

    Attributes:
        name: Name of the adapter: `fold0`, `fold1`, ... or `final`.
        train: Rows it is trained on.
        development: Rows its best epoch is chosen on.
        held_out: Rows it is evaluated on; none for `final`.
    """

    name: str
    train: np.ndarray
    development: np.ndarray
    held_out: np.ndarray


def adapter_splits(examples: LabelledClips, folds: Folds, seed: int, *, final: bool = True) -> list[AdapterSplit]:
    """Return one split per fold and, with `final`, one that trains on all folds.

    The development clips are an eighth of the clips outside the fold, disjoint in speakers where these are known.
    """
    rows = [(f"fold{fold}", folds.train(fold), folds.held_out(fold)) for fold in range(folds.count)]
    if final:
        rows.append((peft_methods.FINAL, np.arange(len(examples)), np.arange(0)))
    splits = []
    for name, outside, held_out in rows:
        train, development = _split_development(examples, outside, seed)
        splits.append(AdapterSplit(name=name, train=train, development=development, held_out=held_out))
    return splits


def join_held_out(splits: Sequence[AdapterSplit], logits: Sequence[np.ndarray]) -> np.ndarray:
    """Return logits (..., N, C) of all clips from those (..., H, C) of each split's held-out clips."""
    rows = np.concatenate([split.held_out for split in splits])
    return np.concatenate(logits, axis=-2)[..., np.argsort(rows), :]


def _split_development(examples: LabelledClips, rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide `rows` into training and development rows; of too few clips to divide, both are all of them."""
    is_chosen = np.zeros(len(examples), bool)
    is_chosen[rows] = True
    chosen = examples.select(is_chosen)
    count = max(2, min(DEVELOPMENT_FOLDS, int(np.bincount(chosen.labels).max())))
    # Keeping speakers apart may leave one class only in training, then clips are divided without regard to speakers.
    for clips in (chosen, replace(chosen, speakers=(None,) * len(chosen))):
        try:
            folds = make_folds(clips, count, seed)
        except MertoolError:
            continue
        return rows[folds.train(0)], rows[folds.held_out(0)]
    return rows, rows

"""Draws of hyper-parameters, and how one of them and an epoch are chosen."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mertool.errors import MertoolError
from mertool.learning.folds import Folds, make_folds
from mertool.learning.labelled_clips import LabelledClips

# What the official script of MER2024 draws from.
WIDTHS, DROPOUTS, RATES = (64, 128, 256), (0.2, 0.3, 0.4, 0.5), (1e-3, 1e-4)
PARTS = 5  # of a training part, one is the development part


@dataclass(frozen=True)
class Draw:
    """Hyper-parameters of a member: hidden size, dropout and learning rate."""

    width: int = 128
    dropout: float = 0.3
    learning_rate: float = 1e-3

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_draws(count: int, seed: int) -> list[Draw]:
    """`count` random draws, with repetition, as the official script makes them."""
    rng = np.random.default_rng([seed, 1])
    return [Draw(int(rng.choice(WIDTHS)), float(rng.choice(DROPOUTS)), float(rng.choice(RATES))) for _ in range(count)]


def shuffled_folds(examples: LabelledClips, count: int, seed: int) -> Folds:
    """Folds as the official script makes them, neither stratified nor by speaker; but seeded."""
    if not 2 <= count <= len(examples):
        raise MertoolError(f"{count} folds of {len(examples)} labelled clips: give --folds from 2 to {len(examples)}")
    of = np.random.default_rng([seed, 2]).permutation(np.arange(len(examples)) % count)
    return Folds(of, count, f"{count} folds, shuffled; speakers are not kept apart")


def development_parts(examples: LabelledClips, folds: Folds, seed: int) -> list[np.ndarray]:
    """Of each fold, rows of its training part that choose for it: a fifth, stratified and by speaker like folds."""
    found = []
    for fold in range(folds.count):
        rows = folds.train(fold)
        part = examples.select(folds.fold_of != fold)
        count = min(PARTS, len(part), int(np.bincount(part.labels).max()))
        try:
            inner = make_folds(part, count, seed)
        except MertoolError as error:
            raise MertoolError(
                f"the training part of fold {fold} cannot be parted again to choose hyper-parameters ({error}): leave "
                "out --search, or give more clips"
            ) from error
        found.append(rows[inner.held_out(0)])
    return found


def choose_nested(scores: np.ndarray) -> list[tuple[int, int]]:
    """Draw and number of epochs for each fold, by scores (F, D, E) on its development part; the first of equals."""
    places = [np.unravel_index(int(table.argmax()), table.shape) for table in scores]
    return [(int(draw), int(epoch) + 1) for draw, epoch in places]


def choose_optimistic(scores: np.ndarray) -> int:
    """The draw whose mean over folds of the best epoch's score is highest; scores (F, D, E)."""
    return int(scores.max(-1).mean(0).argmax())

"""Hyper-parameters of ensemble members: random trials, and the selection of a trial and a number of epochs."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mertool.errors import MertoolError
from mertool.learning.folds import Folds, make_folds
from mertool.learning.labelled_clips import LabelledClips

# The search space of the official script of MER2024.
WIDTHS, DROPOUTS, LEARNING_RATES = (64, 128, 256), (0.2, 0.3, 0.4, 0.5), (1e-3, 1e-4)
N_INNER_FOLDS = 5  # of a fold's training clips, one is the development split


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Hyper-parameters of a member: hidden size, dropout rate, peak learning rate and number of epochs."""

    width: int = 128
    dropout: float = 0.3
    learning_rate: float = 1e-3
    epochs: int = 60

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sample_trials(count: int, *, epochs: int, seed: int) -> list[Trial]:
    """Return `count` random trials, with repetition, as the official script samples them."""
    rng = np.random.default_rng([seed, 1])
    return [
        Trial(
            width=int(rng.choice(WIDTHS)),
            dropout=float(rng.choice(DROPOUTS)),
            learning_rate=float(rng.choice(LEARNING_RATES)),
            epochs=epochs,
        )
        for _ in range(count)
    ]


def official_folds(labelled: LabelledClips, count: int, seed: int) -> Folds:
    """Return folds as the official script makes them, neither stratified nor by speaker, but seeded."""
    if not 2 <= count <= len(labelled):
        raise MertoolError(f"{count} folds of {len(labelled)} labelled clips: give --folds from 2 to {len(labelled)}")
    fold_of = np.random.default_rng([seed, 2]).permutation(np.arange(len(labelled)) % count)
    return Folds(fold_of, count, f"{count} folds, shuffled; speakers are not kept apart")


def development_splits(labelled: LabelledClips, folds: Folds, seed: int) -> list[np.ndarray]:
    """Return for each fold the rows of its training clips that select for it: a fifth, made like the folds."""
    splits = []
    for fold in range(folds.count):
        rows = folds.train(fold)
        training = labelled.select(folds.fold_of != fold)
        count = min(N_INNER_FOLDS, len(training), int(np.bincount(training.strata).max()))
        try:
            inner = make_folds(training, count, seed)
        except MertoolError as error:
            raise MertoolError(
                f"the training clips of fold {fold} cannot be split again to select hyper-parameters ({error}): leave "
                "out --search, or give more clips"
            ) from error
        splits.append(rows[inner.held_out(0)])
    return splits


def select_per_fold(trials: list[Trial], scores: np.ndarray) -> list[Trial]:
    """Return for each fold the trial and its number of epochs with the highest score; of equal ones the first.

    scores: (F, T, E), those of F folds, T trials and E epochs on the fold's development split.
    """
    best = [np.unravel_index(int(table.argmax()), table.shape) for table in scores]
    return [replace(trials[int(trial)], epochs=int(epoch) + 1) for trial, epoch in best]


def select_optimistic(trials: list[Trial], scores: np.ndarray) -> tuple[Trial, float]:
    """Return the trial with the highest mean over folds of the best epoch's score, and that mean; scores (F, T, E)."""
    means = scores.max(-1).mean(0)
    return trials[int(means.argmax())], float(means.max())

"""Folds: stratified by class, disjoint in speakers where all are known, seeded."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from mertool.errors import MertoolError
from mertool.training.examples import Examples


@dataclass(frozen=True)
class Folds:
    """Fold of each example (N,), and how they were made, in words."""

    of: np.ndarray
    count: int
    kind: str

    def train(self, fold: int) -> np.ndarray:
        """Rows outside `fold`."""
        return np.flatnonzero(self.of != fold)

    def held_out(self, fold: int) -> np.ndarray:
        """Rows of `fold`."""
        return np.flatnonzero(self.of == fold)

    def to_json(self, examples: Examples) -> dict[str, int]:
        """Clip to fold, as stored with a run."""
        return dict(zip(examples.clips, map(int, self.of), strict=True))


def make_folds(examples: Examples, count: int, seed: int) -> Folds:
    """`count` folds; by speaker where every speaker is known and there are at least two."""
    if count < 2:
        raise MertoolError(f"{count} folds: give at least 2")
    if len(examples) < count:
        raise MertoolError(
            f"{len(examples)} labelled clips with features are fewer than {count} folds: give --folds less"
        )
    speakers = set(examples.speakers)
    if None not in speakers and len(speakers) >= 2:
        count = min(count, len(speakers))
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        kind = f"{count} folds, speaker-disjoint ({len(speakers)} speakers)"
        groups = np.array([str(speaker) for speaker in examples.speakers])
    else:
        splitter, groups = StratifiedKFold(count, shuffle=True, random_state=seed), None
        kind = f"{count} folds, speakers not known for all clips, so not kept apart"
        most = np.bincount(examples.labels).max()
        if most < count:
            raise MertoolError(
                f"the largest class has {most} clips, fewer than {count} folds: give --folds {most} or less"
            )
    of = np.zeros(len(examples), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a rare class that is not in every fold
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(examples)), examples.labels, groups)):
            of[held_out] = fold
    for fold in range(count):
        if len(np.unique(examples.labels[of != fold])) < 2:
            raise MertoolError(
                f"training part {fold + 1} of {count} has one class only: give fewer --folds or more clips"
            )
    return Folds(of, count, kind)

"""Folds for cross-validation: stratified by class or number, and disjoint in speakers where all are known."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from mertool.errors import MertoolError, MertoolWarning, count_of
from mertool.learning.labelled_clips import LabelledClips
from mertool.options.shared import MAX_FOLDS
from mertool.significance import known_speakers


@dataclass(frozen=True)
class Folds:
    """The held-out fold of each of N clips.

    Attributes:
        fold_of: Fold of each clip (N,), from 0.
        count: Number of folds.
        description: How they were made, for people.
    """

    fold_of: np.ndarray
    count: int
    description: str

    def train(self, fold: int) -> np.ndarray:
        """Return the rows that are not in `fold`."""
        return np.flatnonzero(self.fold_of != fold)

    def held_out(self, fold: int) -> np.ndarray:
        """Return the rows in `fold`."""
        return np.flatnonzero(self.fold_of == fold)

    def to_json(self, examples: LabelledClips) -> dict[str, int]:
        """Return the fold by clip id, as run.json holds it."""
        return dict(zip(examples.clips, map(int, self.fold_of), strict=True))


def make_folds(examples: LabelledClips, count: int, seed: int) -> Folds:
    """Make `count` folds, or as many as there are speakers if these are fewer.

    Folds are disjoint in speakers if every speaker is known and there are at least two. Raises MertoolError if there
    are too few clips, or if the clips outside a fold are of one class.
    """
    if not 2 <= count <= MAX_FOLDS:
        raise MertoolError(f"{count} folds: give 2 to {MAX_FOLDS}")
    if len(examples) < count:
        raise MertoolError(
            f"{len(examples)} labelled clips with features are fewer than {count} folds: give --folds less"
        )
    groups = speaker_groups(examples)
    if groups is None:
        folds = _stratified_folds(examples, count, seed)
    else:
        folds = _speaker_disjoint_folds(examples, groups, count, seed=seed)
    # With few speakers, one of them may hold all clips of a class.
    for fold in range(folds.count):
        if len(np.unique(examples.labels[folds.train(fold)])) < 2:
            raise MertoolError(
                f"the clips outside fold {fold + 1} of {folds.count} have one class only: give fewer --folds or more "
                "clips"
            )
    return folds


def describe_rare_classes(examples: LabelledClips, folds: Folds, classes: tuple[str, ...]) -> list[str]:
    """Return one sentence for each class that the folds cannot train and score as the others, for people.

    These are classes whose clips all lie in one fold, such as those of a single speaker: the model that is scored on
    them has never seen the class. And classes with fewer clips than folds, which some folds do not score.
    """
    sentences = []
    for index in np.unique(examples.labels).tolist():
        rows = np.flatnonzero(examples.labels == index)
        number = count_of(len(rows), "clip")
        speakers = {examples.speakers[row] for row in rows}
        if len(np.unique(folds.fold_of[rows])) == 1:
            where = (
                f"of speaker {speakers.pop()} alone" if len(speakers) == 1 and None not in speakers else "in one fold"
            )
            sentences.append(f"{classes[index]} ({number} {where}) is never in training when it is held out")
        elif len(rows) < folds.count:
            sentences.append(f"{classes[index]} ({number}) has fewer clips than the {folds.count} folds")
    return sentences


def warn_of_rare_classes(examples: LabelledClips, partitions: Sequence[Folds], classes: tuple[str, ...]) -> list[str]:
    """Issue one MertoolWarning for what `describe_rare_classes` says of any of the partitions; return the sentences.

    Without classes, where the labels are numbers, there are none.
    """
    if not classes:
        return []
    sentences = [sentence for folds in partitions for sentence in describe_rare_classes(examples, folds, classes)]
    sentences = list(dict.fromkeys(sentences))
    if sentences:
        advice = "add clips of more speakers, or take the label out of the manifest"
        warnings.warn(f"{'; '.join(sentences)}: {advice}", MertoolWarning, stacklevel=2)
    return sentences


def speaker_groups(examples: LabelledClips) -> np.ndarray | None:
    """Return the speaker (N,) of each clip if all are known and there are at least two, else None."""
    return known_speakers(examples.speakers)


def _stratified_folds(examples: LabelledClips, count: int, seed: int) -> Folds:
    largest_class = np.bincount(examples.strata).max()
    if largest_class < count:
        raise MertoolError(
            f"the largest class has {largest_class} clips, fewer than {count} folds: give --folds {largest_class} or "
            "less"
        )
    fold_of = _assign(StratifiedKFold(count, shuffle=True, random_state=seed), examples, None)
    return Folds(fold_of, count, f"{count} folds, speakers not known for all clips, so not kept apart")


def _speaker_disjoint_folds(examples: LabelledClips, groups: np.ndarray, count: int, *, seed: int) -> Folds:
    speakers = len(set(examples.speakers))
    fewer = f", too few for the {count} asked for" if count > speakers else ""
    splitter = StratifiedGroupKFold(min(count, speakers), shuffle=True, random_state=seed)
    # To balance the classes scikit-learn may leave folds empty; these are dropped.
    used, fold_of = np.unique(_assign(splitter, examples, groups), return_inverse=True)
    return Folds(fold_of, len(used), f"{len(used)} folds, speaker-disjoint ({speakers} speakers{fewer})")


def _assign(
    splitter: StratifiedKFold | StratifiedGroupKFold, examples: LabelledClips, groups: np.ndarray | None
) -> np.ndarray:
    """Return the fold (N,) of each clip."""
    fold_of = np.zeros(len(examples), np.int64)
    with warnings.catch_warnings():
        # scikit-learn warns of a class with fewer clips than folds; corpora have such classes.
        warnings.simplefilter("ignore", UserWarning)
        for fold, (_, rows) in enumerate(splitter.split(np.zeros(len(examples)), examples.strata, groups)):
            fold_of[rows] = fold
    return fold_of

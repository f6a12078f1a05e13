"""Self-training: labels for unlabelled clips where the modalities agree, each fold by what it knows alone.

One round: members trained on the labelled clips outside fold f (and on the pseudo-labels of the round before) score all
unlabelled clips; `select` takes for each class the most confident ones on which fusion and a majority of the unimodal
systems agree; the members of fold f are trained again with those. So a label of fold f never reaches the members that
score fold f. What would break this: a temperature fitted on all held-out clips before selecting, a number of steps that
is common to members of several folds, one set of pseudo-labels for all folds. Unlabelled clips stand in no fold.

Unimodal systems are trained once, on labelled clips alone: they are the witnesses, and would soon agree with whatever
fusion says if they learned from it. Nothing is chosen on the held-out scores: the last round is the result, whatever
the report says of it.

`self_training` drives this with the members of `train_system`.

Sources: quotas by class, Zou et al. (CBST, 2018); thresholds by class, Zhang et al. (FlexMatch, 2021); agreement of
views, Blum and Mitchell (1998).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from mertool.errors import MertoolError
from mertool.fusion.batches import UNUSED
from mertool.fusion.calibration import class_prior
from mertool.learning.folds import Folds
from mertool.metrics import paired_bootstrap, score_json

LEAST = 0.5  # no clip is taken to which fusion gives its class less than the half


@dataclass(frozen=True)
class SelfTraining:
    """rounds of new pseudo-labels. share: of the labelled training clips, so many are pseudo-labelled in the last
    round, a part of it in each before. confidence: a class is learned as far as fusion is so sure of its clips."""

    rounds: int = 3
    share: float = 1.0
    confidence: float = 0.8

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise MertoolError(f"{self.rounds} rounds of self-training: give at least 1")
        if not self.share > 0:
            raise MertoolError(f"a share of {self.share:g} pseudo-labelled clips: give a number above 0")
        if not LEAST <= self.confidence < 1:
            raise MertoolError(f"a confidence of {self.confidence:g}: give a number from {LEAST:g} to below 1")


@dataclass(frozen=True)
class UnimodalPredictions:
    """What the unimodal members of each fold say of the unlabelled clips, logits (F, U, C), and which have it (U,)."""

    logits: np.ndarray
    available: np.ndarray


@dataclass(frozen=True)
class Selection:
    """Labels (U,), UNUSED for clips not taken; by class (C,): clips agreed on, least confidence that was asked."""

    labels: np.ndarray
    agreed: np.ndarray
    thresholds: np.ndarray

    @property
    def taken(self) -> np.ndarray:
        """Clips (C,) taken of each class."""
        return np.bincount(self.labels[self.labels != UNUSED], minlength=len(self.agreed))


@dataclass(frozen=True)
class Round:
    """What training gave: held-out logits (N, C), those of each fold's members on unlabelled clips (F, U, C), and
    whatever the trainer wants to keep (its members)."""

    held_out: np.ndarray
    unlabelled: np.ndarray
    kept: Any = None


@dataclass(frozen=True)
class SelfTrained:
    """The last round, the pseudo-labels (F, U) it was trained with, and the report of all rounds."""

    last: Round
    pseudo: np.ndarray
    report: dict[str, Any]


def select(
    fusion: np.ndarray,
    votes: Sequence[np.ndarray],
    available: Sequence[np.ndarray],
    prior: np.ndarray,
    quota: float,
    confidence: float,
) -> Selection:
    """Pseudo-labels for U clips.

    fusion, and each of `votes`: logits (U, C) of one system; available: (U,) bool for each vote. A clip is agreed on
    where two votes are available or more and more than half of them name the class that fusion does. Of class c at most
    quota * prior[c] clips are taken, the surest, so that the shares of classes stay those of `prior` (C,) and an easy
    class crowds out no other. The threshold of a class is lower the fewer of its clips fusion is sure of (FlexMatch,
    counted against the prior), but at least LEAST.
    """
    sure = softmax(np.asarray(fusion, np.float64), axis=-1).max(1)
    guess, classes = fusion.argmax(1), fusion.shape[1]
    agreeing = _agreement(guess, votes, available)
    learned = np.bincount(guess[agreeing & (sure >= confidence)], minlength=classes) / prior
    degree = learned / max(learned.max(), 1e-12)
    thresholds = np.maximum(LEAST, confidence * degree / (2 - degree))
    labels = np.full(len(guess), UNUSED, np.int64)
    for index in range(classes):
        candidates = np.flatnonzero(agreeing & (guess == index) & (sure >= thresholds[index]))
        surest = candidates[np.argsort(-sure[candidates], kind="stable")]
        labels[surest[: int(quota * prior[index])]] = index
    return Selection(labels, np.bincount(guess[agreeing], minlength=classes), thresholds)


def _agreement(guess: np.ndarray, votes: Sequence[np.ndarray], available: Sequence[np.ndarray]) -> np.ndarray:
    """(U,) where more than half of the votes a clip has are for `guess`.

    With several systems one vote is none: of a clip with one modality fusion says what that modality says. With one
    system there is nothing to agree with.
    """
    if len(votes) < 2:
        return np.ones(len(guess), bool)
    there = np.stack(available)
    same = np.stack([vote.argmax(1) == guess for vote in votes]) & there
    return (2 * same.sum(0) > there.sum(0)) & (there.sum(0) >= 2)


def self_train(
    train: Callable[[np.ndarray], Round],
    clips: int,
    witnesses: Sequence[UnimodalPredictions],
    labels: np.ndarray,
    folds: Folds,
    options: SelfTraining,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> SelfTrained:
    """Train on labelled clips alone, then `rounds` times with pseudo-labels too; see the top of this file.

    `train` gets pseudo-labels (F, clips) and trains the members of fold f with those of row f. labels (N,) and `groups`
    (N,) are of the labelled clips, which stand in folds; `clips` is the number of unlabelled ones, which do not.
    """
    pseudo = np.full((folds.count, clips), UNUSED, np.int64)
    first = last = train(pseudo)
    rounds = []
    for number in range(1, options.rounds + 1):
        chosen = [
            _select_for(fold, last, witnesses, labels[folds.train(fold)], number / options.rounds, options)
            for fold in range(folds.count)
        ]
        pseudo = np.stack([selection.labels for selection in chosen])
        last = train(pseudo)
        rounds.append(_report(chosen, first, last, labels, seed, groups))
    classes = first.held_out.shape[1]
    before = score_json(labels, first.held_out.argmax(1), classes, seed=seed, groups=groups)
    return SelfTrained(last, pseudo, {"unlabelled_clips": clips, "before": before["waf"], "rounds": rounds})


def _select_for(
    fold: int,
    last: Round,
    witnesses: Sequence[UnimodalPredictions],
    labels: np.ndarray,
    part: float,
    options: SelfTraining,
) -> Selection:
    """Pseudo-labels of one fold, from its own members and the labels (n,) they trained on."""
    fusion = last.unlabelled[fold]
    return select(
        fusion,
        [witness.logits[fold] for witness in witnesses],
        [witness.available for witness in witnesses],
        class_prior(labels, fusion.shape[1]),
        part * options.share * len(labels),
        options.confidence,
    )


def _report(
    chosen: list[Selection], first: Round, last: Round, labels: np.ndarray, seed: int, groups: np.ndarray | None
) -> dict[str, Any]:
    """Of one round: clips by class, mean over folds, and the held-out score against that without pseudo-labels."""
    classes = first.held_out.shape[1]
    before, after = first.held_out.argmax(1), last.held_out.argmax(1)
    by_class = ("agreed", "thresholds", "taken")
    return {
        **{name: np.mean([getattr(selection, name) for selection in chosen], 0).tolist() for name in by_class},
        "waf": score_json(labels, after, classes, seed=seed, groups=groups)["waf"],
        "gain": paired_bootstrap(labels, before, after, classes=classes, seed=seed, groups=groups),
    }

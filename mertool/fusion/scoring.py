"""Scores of cross-validated ensembles, and of their single members, on the clips that these held out."""

from typing import Any

import numpy as np

from mertool.fusion.cross_validation import CrossValidatedEnsemble
from mertool.fusion.modality_features import FusionData
from mertool.learning.folds import Folds, speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.metrics import SCORES, confusion_matrix, scores_from_confusion
from mertool.targets import Target

AFTERWARDS = "the best part was chosen after the fact, by the scores above"


def score_ensemble(ensemble: CrossValidatedEnsemble, labelled: LabelledClips, *, target: Target) -> dict[str, Any]:
    """Return the scores on the labelled clips that have some modality of the ensemble, and their number."""
    rows, groups = ensemble.can_score, _speakers_of(labelled, ensemble.can_score)
    predicted = target.decide(ensemble.held_out_logits)
    scores = target.measure.score_json(labelled.labels[rows], predicted[rows], groups=groups)
    return {"clips": int(rows.sum()), **scores}


def score_single_members(ensemble: CrossValidatedEnsemble, data: FusionData, *, classes: int) -> dict[str, Any]:
    """Return the statistic of MERTools: means over folds, then over repetitions, of the scores of single members.

    A score is that of one member on the clips of the fold that it held out. Folds without a scorable clip have none.
    The spread is the standard deviation over repetitions, with n - 1; None for a single repetition.
    """
    folds = [rows for fold in range(data.folds.count) if len(rows := data.held_out(fold))]
    predicted = ensemble.single_logits.argmax(-1)
    matrices = np.stack(
        [
            [confusion_matrix(data.labelled.labels[rows], repetition[rows], classes) for rows in folds]
            for repetition in predicted
        ]
    )
    by_repetition = {name: values.mean(1) for name, values in scores_from_confusion(matrices).items()}
    return {
        "clips": int(ensemble.can_score.sum()),
        **{
            name: {
                "mean": float(by_repetition[name].mean()),
                "std": float(by_repetition[name].std(ddof=1)) if len(predicted) > 1 else None,
                "repetitions": by_repetition[name].tolist(),
            }
            for name in SCORES
        },
    }


def compare_with_best_modality(
    fusion: CrossValidatedEnsemble,
    unimodal: dict[str, CrossValidatedEnsemble],
    labelled: LabelledClips,
    *,
    target: Target,
) -> dict[str, Any]:
    """Return a paired test of the fusion against the best unimodal ensemble, on the clips that this one scores."""
    best = max(unimodal, key=lambda name: _main_score(unimodal[name], labelled, target))
    rows = unimodal[best].can_score
    truth, groups = labelled.labels[rows], _speakers_of(labelled, rows)
    first, second = (target.decide(ensemble.held_out_logits)[rows] for ensemble in (unimodal[best], fusion))
    return {
        "part": best,
        "note": AFTERWARDS,
        "clips": int(rows.sum()),
        **target.measure.paired_test(truth, first, second, groups=groups),
    }


def score_of_mean(labelled: LabelledClips, folds: Folds, target: Target) -> dict[str, float]:
    """Return the scores of always predicting the mean number of the clips outside a fold."""
    predicted = np.zeros(len(labelled))
    for fold in range(folds.count):
        predicted[folds.held_out(fold)] = labelled.labels[folds.train(fold)].mean()
    measure = target.measure
    return {name: float(value) for name, value in measure.scores(measure.table(labelled.labels, predicted)).items()}


def majority_class_waf(labels: np.ndarray, classes: int) -> float:
    """Return the weighted F1 of always predicting the largest class."""
    predicted = np.full_like(labels, np.bincount(labels).argmax())
    return float(scores_from_confusion(confusion_matrix(labels, predicted, classes))["waf"])


def _main_score(ensemble: CrossValidatedEnsemble, labelled: LabelledClips, target: Target) -> float:
    rows = ensemble.can_score
    return float(target.measure.main_score(labelled.labels[rows], target.decide(ensemble.held_out_logits)[rows]))


def _speakers_of(labelled: LabelledClips, rows: np.ndarray) -> np.ndarray | None:
    """Return the speakers of the clips in `rows` if all speakers are known, else None."""
    groups = speaker_groups(labelled)
    return None if groups is None else groups[rows]

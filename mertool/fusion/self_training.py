"""Self-training on unlabelled clips: rounds of pseudo-labels, separate for each fold.

In a round the members of fold f, trained on the labelled clips outside f and on the pseudo-labels of the round before,
score all unlabelled clips; `select_pseudo_labels` selects some; the members of fold f are trained anew with these. So a
label of fold f never reaches the members that score fold f. This would break with a temperature fitted on all held-out
clips before the selection, with a number of steps common to members of several folds, or with one set of pseudo-labels
for all folds. Unlabelled clips are in no fold.

The unimodal ensembles whose agreement is asked for are trained once, on labelled clips only: trained on pseudo-labels
they would soon agree with whatever fusion predicts. Nothing is selected on held-out scores: the ensemble of the last
round is the result, whatever its score.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mertool.errors import MertoolError
from mertool.fusion.calibration import class_prior
from mertool.fusion.cross_validation import CrossValidatedEnsemble, EnsembleConfig, train_ensemble
from mertool.fusion.ensemble import Progress, stage_progress
from mertool.fusion.modality_features import FusionData
from mertool.fusion.pseudo_labels import (
    MIN_CONFIDENCE,
    PseudoLabelSelection,
    UnimodalPredictions,
    select_pseudo_labels,
)
from mertool.learning.folds import speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.significance import paired_test, score_json


@dataclass(frozen=True)
class SelfTraining:
    """Number of rounds of self-training, and of pseudo-labels in them.

    Attributes:
        rounds: Number of times that pseudo-labels are selected and members trained anew.
        share: Pseudo-labelled clips of the last round, as a share of the fold's labelled training clips. Earlier
            rounds have proportionally fewer.
        confidence: See `select_pseudo_labels`.
    """

    rounds: int = 3
    share: float = 1.0
    confidence: float = 0.8

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise MertoolError(f"{self.rounds} rounds of self-training: give at least 1")
        if not self.share > 0:
            raise MertoolError(f"a share of {self.share:g} pseudo-labelled clips: give a number above 0")
        if not MIN_CONFIDENCE <= self.confidence < 1:
            raise MertoolError(f"a confidence of {self.confidence:g}: give a number from {MIN_CONFIDENCE:g} to below 1")


@dataclass(frozen=True)
class SelfTrainingResult:
    """The ensemble of the last round, its pseudo-labels (F, U), and the report of all rounds as JSON."""

    ensemble: CrossValidatedEnsemble
    pseudo_labels: np.ndarray
    report: dict[str, Any]


def self_train(
    data: FusionData,
    config: EnsembleConfig,
    *,
    unimodal: Sequence[CrossValidatedEnsemble],
    self_training: SelfTraining,
    progress: Progress = lambda *_: None,
) -> SelfTrainingResult:
    """Train on labelled clips, then `self_training.rounds` times on pseudo-labelled clips, too.

    Args:
        data: N labelled clips with their folds, then U unlabelled ones.
        config: What is trained. Hyper-parameters are searched for once, on labelled clips.
        unimodal: An ensemble for each modality, of the same clips, trained on the labelled ones. With one modality
            give none: nothing has to agree then.
        self_training: How pseudo-labels are used.
        progress: Called with the epochs of members that are done, and in all.
    """
    rounds = self_training.rounds
    reports = []
    first = last = train_ensemble(data, config, progress=stage_progress(progress, 0, rounds + 1))
    for number in range(1, rounds + 1):
        share = number / rounds * self_training.share
        selections = _select_for_folds(
            data, last, unimodal, share=share, confidence=self_training.confidence, classes=config.classes
        )
        data = replace(data, pseudo_labels=np.stack([selection.labels for selection in selections]))
        last = train_ensemble(data, config, trials=first.trials, progress=stage_progress(progress, number, rounds + 1))
        reports.append(_report_round(selections, first, last, labelled=data.labelled, config=config))
    report = {
        "unlabelled_clips": len(data.features) - len(data.labelled),
        "before": _score(first, data.labelled, config)["waf"],
        "rounds": reports,
    }
    assert data.pseudo_labels is not None
    return SelfTrainingResult(replace(last, selection=first.selection), data.pseudo_labels, report)


def _select_for_folds(
    data: FusionData,
    fusion: CrossValidatedEnsemble,
    unimodal: Sequence[CrossValidatedEnsemble],
    *,
    share: float,
    confidence: float,
    classes: int,
) -> list[PseudoLabelSelection]:
    """Return the pseudo-labels of each fold, by members and labels of the other folds alone."""
    n_labelled = len(data.labelled)
    available = data.features.present[n_labelled:].cpu().numpy()
    selections = []
    for fold in range(data.folds.count):
        labels = data.labelled.labels[data.folds.train(fold)]
        votes = [
            UnimodalPredictions(ensemble.fold_logits[fold, n_labelled:], available[:, modality])
            for modality, ensemble in enumerate(unimodal)
        ]
        selection = select_pseudo_labels(
            fusion.fold_logits[fold, n_labelled:],
            votes,
            prior=class_prior(labels, classes),
            quota=share * len(labels),
            confidence=confidence,
        )
        selections.append(selection)
    return selections


def _report_round(
    selections: list[PseudoLabelSelection],
    first: CrossValidatedEnsemble,
    last: CrossValidatedEnsemble,
    *,
    labelled: LabelledClips,
    config: EnsembleConfig,
) -> dict[str, Any]:
    """Return selected clips by class, mean over folds, and the held-out score against that without pseudo-labels."""
    gain = paired_test(
        labelled.labels,
        first.held_out_logits.argmax(1),
        last.held_out_logits.argmax(1),
        n_classes=config.classes,
        groups=speaker_groups(labelled),
    )
    return {
        "agreed": np.mean([selection.agreed for selection in selections], 0).tolist(),
        "thresholds": np.mean([selection.thresholds for selection in selections], 0).tolist(),
        "taken": np.mean([selection.n_selected for selection in selections], 0).tolist(),
        "waf": _score(last, labelled, config)["waf"],
        "gain": gain,
    }


def _score(ensemble: CrossValidatedEnsemble, labelled: LabelledClips, config: EnsembleConfig) -> dict[str, Any]:
    predicted, groups = ensemble.held_out_logits.argmax(1), speaker_groups(labelled)
    return score_json(labelled.labels, predicted, config.classes, groups=groups)

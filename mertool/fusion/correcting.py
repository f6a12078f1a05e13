"""Temperature and prior correction of a trained system, and what each changes."""

from typing import Any

import numpy as np

from mertool.fusion.calibration import (
    Correction,
    apply_correction,
    class_prior,
    em_prior,
    prior_effect,
    temperature_effect,
)
from mertool.fusion.cross_validation import CrossValidatedEnsemble
from mertool.learning.folds import Folds
from mertool.learning.labelled_clips import LabelledClips


def correct(
    system: CrossValidatedEnsemble,
    examples: LabelledClips,
    folds: Folds,
    here: np.ndarray,
    there: np.ndarray | None = None,
    calibrate: bool = True,
    balanced: bool = False,
) -> tuple[Correction, dict[str, Any]]:
    """The correction of a system's logits, and its effect as JSON.

    here (N,): examples that have features. there (U,): the unlabelled clips with features, whose shares of classes are
    estimated; None leaves the prior as it is. calibrate: fit a temperature on out-of-fold logits. balanced: training
    weighed the classes alike, so that all have the same share.
    """
    logits, labels = system.held_out[here], examples.labels[here]
    correction, effect = Correction(), {}
    if calibrate:
        effect["temperature"] = temperature_effect(logits, labels, folds.fold_of[here])
        correction = Correction(effect["temperature"]["temperature"])
    if there is not None:
        unlabelled = system.by_fold[:, len(examples) :][:, there].mean(0)
        classes = logits.shape[1]
        train = np.full(classes, 1 / classes) if balanced else class_prior(labels, classes)
        shift = em_prior(apply_correction(unlabelled, correction), train)
        correction = Correction(correction.temperature, tuple(train.tolist()), tuple(shift.prior.tolist()))
        effect["prior"] = {
            **shift.to_json(),
            "train": train.tolist(),
            **prior_effect(logits, labels, unlabelled, correction),
        }
    return correction, effect

"""Calibration of an ensemble's probabilities: temperature scaling, and correction for the class priors of other clips.

Temperature scaling (Guo et al., 2017) divides logits by one number, fitted on out-of-fold logits; it changes no label.

Prior correction (Saerens, Latinne and Decaestecker, 2002) is for new clips whose classes have other frequencies than in
training, while clips of one class look the same in both (label shift): p'(c | x) is proportional to
p(c | x) target(c) / train(c). The target prior is estimated by EM from predictions of unlabelled clips.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import chi2

from mertool.errors import MertoolError
from mertool.fusion.cross_validation import CrossValidatedEnsemble
from mertool.fusion.modality_features import FusionData
from mertool.metrics import calibration_error, confusion_matrix, scores_from_confusion

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # the best one is at a bound where logits carry no information
MIN_PRIOR = 1e-3  # of a class: EM could never raise a prior again that it once estimated as 0
EM_TOLERANCE = 1e-7  # EM has converged when no prior changes by more
MAX_EM_ITERATIONS = 10_000


@dataclass(frozen=True)
class Correction:
    """The correction of logits: a temperature, and class priors (C,) of the training and of the target clips.

    Both priors are given or neither. Raises MertoolError unless each is positive and sums to 1.
    """

    temperature: float = 1.0
    train_prior: tuple[float, ...] | None = None
    target_prior: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise MertoolError(f"temperature {self.temperature}: give a number above 0")
        if (self.train_prior is None) != (self.target_prior is None):
            raise MertoolError("a prior correction needs both priors, that of training and that of the target")
        for name, prior in (("train", self.train_prior), ("target", self.target_prior)):
            if prior is not None and not (min(prior) > 0 and abs(sum(prior) - 1) < 1e-6):
                raise MertoolError(f"the {name} prior {prior} is not valid: give shares above 0 that sum to 1")
        if len(self.train_prior or ()) != len(self.target_prior or ()):
            raise MertoolError(
                f"the train prior has {len(self.train_prior or ())} classes, the target prior "
                f"{len(self.target_prior or ())}: give the same number"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Correction":
        """Return the correction that `to_json` described; JSON has lists for tuples."""
        priors = {name: tuple(map(float, prior)) if prior else None for name, prior in value.items() if "prior" in name}
        return cls(float(value["temperature"]), **priors)


def apply_correction(logits: np.ndarray, correction: Correction) -> np.ndarray:
    """Return corrected probabilities (..., C), float64, of logits (..., C)."""
    scaled = np.asarray(logits, np.float64) / correction.temperature
    if correction.train_prior and correction.target_prior:
        scaled = scaled + np.log(correction.target_prior) - np.log(correction.train_prior)
    return softmax(scaled, axis=-1)


def calibrate_and_correct(
    ensemble: CrossValidatedEnsemble,
    data: FusionData,
    *,
    calibrate: bool = True,
    prior: bool = False,
    class_weights: bool = False,
) -> tuple[Correction, dict[str, Any]]:
    """Return the correction of an ensemble's logits, and what it changes, as JSON.

    Args:
        ensemble: Its logits are out-of-fold for the labelled clips, and means of all members for the unlabelled ones.
        data: The N labelled clips and their folds, and the unlabelled clips.
        calibrate: Fit a temperature.
        prior: Estimate the class prior of the unlabelled clips that have some modality, and correct for it.
        class_weights: Training weighted the classes equally, so the training prior is uniform.
    """
    rows = ensemble.can_score
    logits, labels = ensemble.held_out_logits[rows], data.labelled.labels[rows]
    correction, effect = Correction(), {}
    if calibrate:
        effect["temperature"] = temperature_effect(logits, labels, data.folds.fold_of[rows])
        correction = Correction(effect["temperature"]["temperature"])
    if prior:
        n_labelled = len(data.labelled)
        has_any = data.features.has_any()[n_labelled:]
        target_logits = ensemble.fold_logits[:, n_labelled:][:, has_any].mean(0)
        classes = logits.shape[1]
        train_prior = np.full(classes, 1 / classes) if class_weights else class_prior(labels, classes)
        estimate = em_prior(apply_correction(target_logits, correction), train_prior)
        correction = replace(
            correction, train_prior=tuple(train_prior.tolist()), target_prior=tuple(estimate.prior.tolist())
        )
        effect["prior"] = {
            **estimate.to_json(),
            "train": train_prior.tolist(),
            **prior_effect(logits, labels, target_logits, correction=correction),
        }
    return correction, effect


# ---------------------------------------------------------------- temperature


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the lowest cross-entropy of logits (N, C) of clips that did not train them.

    Out-of-fold logits are means over the members of one fold. The mean over all members, to which the temperature is
    applied, is a little less sharp, so it errs towards too little confidence.
    """
    if not len(labels):
        raise MertoolError("no clip to fit a temperature on: out-of-fold logits of labelled clips are needed")
    wide = np.asarray(logits, np.float64)
    result = minimize_scalar(
        lambda log_temperature: cross_entropy(wide / np.exp(log_temperature), labels),
        bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(result.x))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log probability, in nats, of the labels (N,) under logits (N, C)."""
    return float(-log_softmax(logits, axis=-1)[np.arange(len(labels)), labels].mean())


def temperature_effect(logits: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> dict[str, Any]:
    """Return the temperature of out-of-fold logits (N, C), and cross-entropy and calibration error before and after.

    For `after` the logits of each fold, by `folds` (N,), are divided by a temperature that was fitted on the other
    folds, so that no clip is scored by a temperature it was fitted on.
    """
    scaled = np.array(logits, np.float64)
    for fold in np.unique(folds):
        scaled[folds == fold] /= fit_temperature(logits[folds != fold], labels[folds != fold])
    return {
        "temperature": fit_temperature(logits, labels),
        "before": _calibration_scores(np.asarray(logits, np.float64), labels),
        "after": _calibration_scores(scaled, labels),
    }


def _calibration_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    ece = calibration_error(softmax(logits, axis=-1), labels)["ece"]
    return {"cross_entropy": cross_entropy(logits, labels), "ece": ece}


# ---------------------------------------------------------------- prior


@dataclass(frozen=True, kw_only=True)
class PriorEstimate:
    """Class prior (C,) of unlabelled clips, as estimated by EM.

    Attributes:
        prior: Share of each class.
        rounds: Iterations of EM.
        converged: False if it was stopped by MAX_EM_ITERATIONS.
        p: Of the likelihood-ratio test against the training prior (Saerens et al., 2002): chi-squared with C - 1
            degrees of freedom.
    """

    prior: np.ndarray
    rounds: int
    converged: bool
    p: float

    @property
    def shifted(self) -> bool:
        """True if the test rejects, at 5 %, that the prior is that of training."""
        return self.p < 0.05

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "prior": self.prior.tolist(), "shifted": self.shifted}


def class_prior(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the share (C,) of each class among labels (N,), with one clip added to each so that none is 0."""
    counts = np.bincount(labels, minlength=classes) + 1.0
    return counts / counts.sum()


def em_prior(probabilities: np.ndarray, train_prior: np.ndarray) -> PriorEstimate:
    """Estimate the class prior of unlabelled clips from their probabilities (N, C) under `train_prior` (C,).

    Iterates until no share changes by more than EM_TOLERANCE. The probabilities should be calibrated: overconfident
    ones bias the estimate. No share falls below MIN_PRIOR.
    """
    if len(probabilities) == 0:
        raise MertoolError("no unlabelled clip has a prediction: the prior of the target cannot be estimated")
    train = np.asarray(train_prior, np.float64)
    likelihood = np.asarray(probabilities, np.float64) / train  # p(x | c), up to a factor of each clip
    prior, change, rounds = train, np.inf, 0
    while change > EM_TOLERANCE and rounds < MAX_EM_ITERATIONS:
        joint = likelihood * prior
        updated = _with_minimum((joint / joint.sum(1, keepdims=True)).mean(0))
        change, prior, rounds = float(np.abs(updated - prior).max()), updated, rounds + 1
    ratio = 2 * float((np.log(likelihood @ prior) - np.log(likelihood @ train)).sum())
    p = float(chi2.sf(max(0.0, ratio), len(train) - 1))
    return PriorEstimate(prior=prior, rounds=rounds, converged=change <= EM_TOLERANCE, p=p)


def _with_minimum(prior: np.ndarray) -> np.ndarray:
    """Raise shares to at least MIN_PRIOR; the other shares are scaled so that all still sum to 1."""
    low = prior < MIN_PRIOR
    if not low.any():
        return prior
    high = np.where(low, 0, prior)
    return np.where(low, MIN_PRIOR, high * (1 - MIN_PRIOR * low.sum()) / high.sum())


def prior_effect(
    logits: np.ndarray, labels: np.ndarray, target_logits: np.ndarray, *, correction: Correction
) -> dict[str, Any]:
    """Return what a prior correction changes: labels of unlabelled clips, and scores of labelled held-out ones.

    logits (N, C) are out-of-fold, target_logits (U, C) the mean of all members. `as_they_are` scores the labelled
    clips, whose prior is that of training, so a correction for another prior costs there. `at_target` weights them by
    class to the target prior: the score to expect there if label shift is the only difference.
    """
    uncorrected = replace(correction, train_prior=None, target_prior=None)
    classes = logits.shape[1]
    matrices = {
        name: confusion_matrix(labels, apply_correction(logits, applied).argmax(1), classes).astype(float)
        for name, applied in (("before", uncorrected), ("after", correction))
    }
    weights = np.ones((classes, 1))
    if correction.train_prior and correction.target_prior:
        weights = (np.array(correction.target_prior) / np.array(correction.train_prior))[:, None]
    uncorrected_labels, corrected_labels = (
        apply_correction(target_logits, applied).argmax(1) for applied in (uncorrected, correction)
    )
    return {
        "unlabelled_clips": len(target_logits),
        "labels_changed": int((uncorrected_labels != corrected_labels).sum()),
        "as_they_are": {name: float(scores_from_confusion(matrix)["waf"]) for name, matrix in matrices.items()},
        "at_target": {name: _weighted_waf(matrix * weights) for name, matrix in matrices.items()},
    }


def _weighted_waf(matrix: np.ndarray) -> float:
    """Return the WAF of a confusion matrix (C, C) whose rows are weighted, so that a row may sum to less than 1."""
    support, predicted = matrix.sum(1), matrix.sum(0)
    f1 = 2 * np.diagonal(matrix) / np.maximum(support + predicted, 1e-12)
    return float((f1 * support).sum() / support.sum())

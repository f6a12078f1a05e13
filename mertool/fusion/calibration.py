"""From logits to probabilities that can be trusted: temperature, and the class prior of other data.

Temperature (Guo et al., 2017) divides logits by one number, fitted on out-of-fold logits; it changes no label.

Prior correction (Saerens, Latinne and Decaestecker, 2002): where new clips have other shares of classes than the
training clips, but clips of one class are alike in both (label shift), p'(c | x) is proportional to
p(c | x) target(c) / train(c), and the target shares are found by EM on predictions of unlabelled clips alone.

    effect = temperature_effect(held_out, labels, folds)       # held_out (N, C): out-of-fold logits
    plain = Correction(effect["temperature"])
    train = class_prior(labels, classes)                       # uniform, if training was class-balanced
    shift = em_prior(apply_correction(unlabelled, plain), train)
    correction = Correction(plain.temperature, tuple(train.tolist()), tuple(shift.prior.tolist()))
    prior_effect(held_out, labels, unlabelled, correction)
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import chi2

from mertool.errors import MertoolError
from mertool.metrics import calibration_error, confusion_matrix, scores_from_confusion

COLDEST, HOTTEST = 0.05, 20.0  # temperatures beyond say that the logits are of no use
LEAST_SHARE = 1e-3  # of a class in an estimated prior: EM would shut out for good a class that it once gives 0
TOLERANCE = 1e-7  # the largest change of a share at which EM has converged
MOST_ROUNDS = 10_000


@dataclass(frozen=True)
class Correction:
    """What makes probabilities of logits: a temperature, and shares of classes (C,) in training and in the target.

    Both priors are given or neither; each is positive and sums to 1.
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
                raise MertoolError(f"the {name} prior {prior} is none: shares above 0 that sum to 1 are")
        if len(self.train_prior or ()) != len(self.target_prior or ()):
            raise MertoolError(
                f"the train prior has {len(self.train_prior or ())} classes, the target prior "
                f"{len(self.target_prior or ())}: give as many"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Correction":
        """What `to_json` gave; tuples come back from lists."""
        priors = {name: tuple(map(float, prior)) if prior else None for name, prior in value.items() if "prior" in name}
        return cls(float(value["temperature"]), **priors)


def apply_correction(logits: np.ndarray, correction: Correction) -> np.ndarray:
    """Probabilities (..., C), float64, of logits (..., C)."""
    scaled = np.asarray(logits, np.float64) / correction.temperature
    if correction.train_prior and correction.target_prior:
        scaled = scaled + np.log(correction.target_prior) - np.log(correction.train_prior)
    return softmax(scaled, axis=-1)


# ---------------------------------------------------------------- temperature


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of the least cross-entropy of logits (N, C) on clips that did not train them.

    Out-of-fold logits are means over a fold's members; the mean over all members, which it is used on, is a little less
    sharp, so what it leaves is rather too little confidence than too much.
    """
    if not len(labels):
        raise MertoolError("no clip to fit a temperature on: out-of-fold logits of labelled clips are needed")
    wide = np.asarray(logits, np.float64)
    found = minimize_scalar(
        lambda log: cross_entropy(wide / np.exp(log), labels),
        bounds=(np.log(COLDEST), np.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log probability, in nats, of the true classes."""
    return float(-log_softmax(logits, axis=-1)[np.arange(len(labels)), labels].mean())


def temperature_effect(logits: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> dict[str, Any]:
    """What a temperature changes on out-of-fold logits (N, C): cross-entropy and calibration error, before and after.

    Each fold (`folds` (N,)) is scaled by the temperature of the others, so no clip is judged by what it fitted; the
    temperature to keep is that of all.
    """
    scaled = np.array(logits, np.float64)
    for fold in np.unique(folds):
        scaled[folds == fold] /= fit_temperature(logits[folds != fold], labels[folds != fold])

    def judge(given: np.ndarray) -> dict[str, float]:
        table = calibration_error(softmax(given, axis=-1), labels)
        return {"cross_entropy": cross_entropy(given, labels), "ece": table["ece"]}

    before = judge(np.asarray(logits, np.float64))
    return {"temperature": fit_temperature(logits, labels), "before": before, "after": judge(scaled)}


# ---------------------------------------------------------------- prior


@dataclass(frozen=True)
class Shift:
    """Shares of classes (C,) in unlabelled clips, as EM found them.

    `p` is of their likelihood-ratio test against the shares of training (Saerens et al., 2002): chi-squared with C - 1
    degrees of freedom. `shifted` says whether the test tells the two apart at 5 %.
    """

    prior: np.ndarray
    rounds: int
    converged: bool
    p: float

    @property
    def shifted(self) -> bool:
        return self.p < 0.05

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "prior": self.prior.tolist(), "shifted": self.shifted}


def class_prior(labels: np.ndarray, classes: int) -> np.ndarray:
    """Shares (C,) of the classes in labels (N,), one clip added to each so that none is 0."""
    counts = np.bincount(labels, minlength=classes) + 1.0
    return counts / counts.sum()


def em_prior(probabilities: np.ndarray, train_prior: np.ndarray) -> Shift:
    """Shares of classes in unlabelled clips, from their probabilities (N, C) under `train_prior` (C,).

    EM goes on until no share changes by more than TOLERANCE. Probabilities should be calibrated (a temperature first):
    overconfident ones lead it astray. No class falls below LEAST_SHARE.
    """
    if len(probabilities) == 0:
        raise MertoolError("no unlabelled clip has a prediction: the prior of the target cannot be estimated")
    train = np.asarray(train_prior, np.float64)
    likelihood = np.asarray(probabilities, np.float64) / train  # p(x | c), up to a factor of each clip
    prior, change, rounds = train, np.inf, 0
    while change > TOLERANCE and rounds < MOST_ROUNDS:
        joint = likelihood * prior
        after = _floored((joint / joint.sum(1, keepdims=True)).mean(0))
        change, prior, rounds = float(np.abs(after - prior).max()), after, rounds + 1
    ratio = 2 * float((np.log(likelihood @ prior) - np.log(likelihood @ train)).sum())
    return Shift(prior, rounds, change <= TOLERANCE, float(chi2.sf(max(0.0, ratio), len(train) - 1)))


def _floored(prior: np.ndarray) -> np.ndarray:
    """Shares of at least LEAST_SHARE that sum to 1; those above it give what is missing, in proportion."""
    low = prior < LEAST_SHARE
    if not low.any():
        return prior
    kept = np.where(low, 0, prior)
    return np.where(low, LEAST_SHARE, kept * (1 - LEAST_SHARE * low.sum()) / kept.sum())


def prior_effect(
    logits: np.ndarray, labels: np.ndarray, unlabelled: np.ndarray, correction: Correction
) -> dict[str, Any]:
    """What a prior correction changes: labels of unlabelled clips, and scores of labelled held-out ones.

    logits (N, C) are out-of-fold, unlabelled (U, C) the mean of all members. `as_they_are` scores the labelled clips,
    whose prior is that of training, so a correction for another prior costs there; `at_target` weighs them by class
    to the target's shares, which is what the target's score would be if label shift were all the difference.
    """
    plain = Correction(correction.temperature)
    guesses = {name: apply_correction(logits, c).argmax(1) for name, c in (("before", plain), ("after", correction))}
    classes = logits.shape[1]
    tables = {name: confusion_matrix(labels, guess, classes).astype(float) for name, guess in guesses.items()}
    weight = np.ones((classes, 1))
    if correction.train_prior and correction.target_prior:
        weight = (np.array(correction.target_prior) / np.array(correction.train_prior))[:, None]
    weighed = {name: table * weight for name, table in tables.items()}
    changed = apply_correction(unlabelled, plain).argmax(1) != apply_correction(unlabelled, correction).argmax(1)
    return {
        "unlabelled_clips": len(unlabelled),
        "labels_changed": int(changed.sum()),
        "as_they_are": {name: float(scores_from_confusion(table)["waf"]) for name, table in tables.items()},
        "at_target": {name: _weighed_waf(table) for name, table in weighed.items()},
    }


def _weighed_waf(table: np.ndarray) -> float:
    """WAF of a confusion matrix (C, C) whose rows carry weights."""
    support, guessed = table.sum(1), table.sum(0)
    f1 = 2 * np.diagonal(table) / np.maximum(support + guessed, 1e-12)
    return float((f1 * support).sum() / support.sum())

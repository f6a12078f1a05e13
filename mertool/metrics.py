"""Scores of the field, with bootstrap intervals, and paired tests between two systems.

Weighted F1 (WAF, MER2024's metric) is scikit-learn's `f1_score(average="weighted")`; UAR is the mean of
the classes' recalls; a class without clips counts in neither. Everything is computed from confusion
matrices, so that thousands of bootstrap draws cost little.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 2000
SCORES = ("waf", "accuracy", "uar")


@dataclass(frozen=True)
class Interval:
    """A score with its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def confusion(truth: np.ndarray, guess: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrices (..., C, C), rows are the truth, of class indices (..., N)."""
    flat = truth * classes + guess
    hits = np.apply_along_axis(np.bincount, -1, flat, minlength=classes * classes)
    return hits.reshape(*hits.shape[:-1], classes, classes)


def scores_of(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """WAF, accuracy and UAR (...,) of confusion matrices (..., C, C)."""
    right = np.diagonal(matrix, axis1=-2, axis2=-1).astype(float)
    support, guessed = matrix.sum(-1), matrix.sum(-2)
    recall = right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(support + guessed, 1)
    total = np.maximum(support.sum(-1), 1)
    present = np.maximum((support > 0).sum(-1), 1)
    return {
        "waf": (f1 * support).sum(-1) / total,
        "accuracy": right.sum(-1) / total,
        "uar": recall.sum(-1) / present,
    }


def score(truth: np.ndarray, guess: np.ndarray, classes: int, seed: int = 0) -> dict[str, Interval]:
    """WAF, accuracy and UAR with intervals over clips drawn with replacement."""
    values = scores_of(confusion(truth, guess, classes))
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(truth), (DRAWS, len(truth)))
    drawn = scores_of(confusion(truth[draws], guess[draws], classes))
    return {
        name: Interval(float(values[name]), *map(float, np.quantile(drawn[name], [0.025, 0.975]))) for name in SCORES
    }


def score_json(truth: np.ndarray, guess: np.ndarray, classes: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """`score` in the form that metrics.json holds."""
    return {name: value.to_json() for name, value in score(truth, guess, classes, seed).items()}


def per_class(matrix: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and number of clips of each class, from one confusion matrix."""
    rows = []
    for index, name in enumerate(classes):
        right, support, guessed = matrix[index, index], matrix[index].sum(), matrix[:, index].sum()
        rows.append(
            {
                "class": name,
                "precision": float(right / max(guessed, 1)),
                "recall": float(right / max(support, 1)),
                "f1": float(2 * right / max(support + guessed, 1)),
                "clips": int(support),
            }
        )
    return rows


def paired_bootstrap(
    truth: np.ndarray, first: np.ndarray, second: np.ndarray, classes: int, seed: int = 0
) -> dict[str, float]:
    """WAF of `second` minus `first` on the same draws: difference, 95 % interval, two-sided p."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(truth), (DRAWS, len(truth)))
    drawn = [scores_of(confusion(truth[draws], guess[draws], classes))["waf"] for guess in (first, second)]
    gain = drawn[1] - drawn[0]
    value = [float(scores_of(confusion(truth, guess, classes))["waf"]) for guess in (first, second)]
    # Add-one: with finitely many draws a p of exactly zero cannot be claimed.
    tail = min((np.sum(gain <= 0) + 1) / (DRAWS + 1), (np.sum(gain >= 0) + 1) / (DRAWS + 1))
    low, high = np.quantile(gain, [0.025, 0.975])
    return {
        "difference": value[1] - value[0],
        "low": float(low),
        "high": float(high),
        "p": float(min(1.0, 2 * tail)),
    }


def mcnemar(truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Exact McNemar test: clips that only one of the two systems gets right, two-sided binomial p."""
    from scipy.stats import binomtest

    only_first = int(np.sum((first == truth) & (second != truth)))
    only_second = int(np.sum((first != truth) & (second == truth)))
    differing = only_first + only_second
    p = binomtest(only_second, differing).pvalue if differing else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": float(p)}

"""Scores of the field, with bootstrap intervals, and paired tests between two systems.

Scores are those of scikit-learn. Weighted F1 (WAF, MER2024's metric) is `f1_score(average="weighted")`; UAR is
`balanced_accuracy_score`, the mean recall of the classes that have clips; macro F1 is `f1_score(average="macro")`, the
mean F1 of the classes that occur in truth or prediction, so a class that is only predicted counts with an F1 of 0.
Everything is computed from confusion matrices, so that thousands of bootstrap draws cost little.

The bootstrap draws clips with replacement, or whole speakers where `groups` (N,) names the speaker of each
clip (cluster bootstrap; Cameron, Gelbach and Miller, 2008): clips of one speaker are alike, so intervals over
clips are too narrow for the question how new speakers would fare. With few speakers they still are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 2000
SCORES = ("waf", "accuracy", "uar", "macro_f1")


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


def confusion_matrix(truth: np.ndarray, guess: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrices (..., C, C), rows are the truth, of class indices (..., N)."""
    flat = truth * classes + guess
    hits = np.apply_along_axis(np.bincount, -1, flat, minlength=classes * classes)
    return hits.reshape(*hits.shape[:-1], classes, classes)


def scores_from_confusion(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """WAF, accuracy, UAR and macro F1 (...,) of confusion matrices (..., C, C)."""
    right = np.diagonal(matrix, axis1=-2, axis2=-1).astype(float)
    support, guessed = matrix.sum(-1), matrix.sum(-2)
    recall = right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(support + guessed, 1)
    total = np.maximum(support.sum(-1), 1)
    # A class that is never right has a recall and an F1 of 0, so it adds nothing to the sums, only to the counts.
    with_clips, occurring = (support > 0).sum(-1), (support + guessed > 0).sum(-1)
    return {
        "waf": (f1 * support).sum(-1) / total,
        "accuracy": right.sum(-1) / total,
        "uar": recall.sum(-1) / np.maximum(with_clips, 1),
        "macro_f1": f1.sum(-1) / np.maximum(occurring, 1),
    }


def score(
    truth: np.ndarray, guess: np.ndarray, classes: int, *, seed: int = 0, groups: np.ndarray | None = None
) -> dict[str, Interval]:
    """WAF, accuracy, UAR and macro F1 with intervals over clips, or over `groups` (N,), drawn with replacement.

    `guess` is (N,), or (S, N) of S repetitions: then of the mean of their scores, on the same draws.
    """
    guesses = np.atleast_2d(guess)
    values = scores_from_confusion(confusion_matrix(np.broadcast_to(truth, guesses.shape), guesses, classes))
    tables = _redraw(truth * classes + guesses, classes**2, groups, seed)
    drawn = scores_from_confusion(tables.reshape(*tables.shape[:2], classes, classes))
    return {
        name: Interval(float(values[name].mean()), *map(float, np.quantile(drawn[name].mean(1), [0.025, 0.975])))
        for name in SCORES
    }


def score_json(
    truth: np.ndarray, guess: np.ndarray, classes: int, *, seed: int = 0, groups: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """`score` in the form that metrics.json holds."""
    return {name: value.to_json() for name, value in score(truth, guess, classes, seed=seed, groups=groups).items()}


def _redraw(cells: np.ndarray, count: int, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """Tables (DRAWS, S, count) that count the cells (S, N), 0 .. count - 1, of clips or groups of clips drawn anew.

    Clips of the same cells are alike, so drawing N clips is drawing how many of each kind from one multinomial.
    """
    rng = np.random.default_rng(seed)
    if groups is None:
        kinds, of = np.unique(cells, axis=1, return_inverse=True)
        share = np.bincount(of.ravel()) / len(of.ravel())
        drawn = rng.multinomial(cells.shape[1], share, DRAWS)
        each = np.zeros((kinds.shape[1], len(cells), count))
        np.put_along_axis(each, kinds.T[..., None], 1.0, 2)
    else:
        names, of = np.unique(groups, return_inverse=True)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
        flat = (of * len(cells) + np.arange(len(cells))[:, None]) * count + cells
        each = np.bincount(flat.ravel(), minlength=len(names) * len(cells) * count).astype(float)
        each = each.reshape(len(names), len(cells), count)
    return (drawn.astype(float) @ each.reshape(len(each), -1)).reshape(DRAWS, len(cells), count)


def per_class_scores(matrix: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and number of clips of each class, from one confusion matrix.

    What is not defined is None: the precision of a class that is never predicted, the recall of one without clips, the
    F1 of one that is neither.
    """
    rows = []
    for index, name in enumerate(classes):
        right, support, guessed = matrix[index, index], matrix[index].sum(), matrix[:, index].sum()
        rows.append(
            {
                "class": name,
                "precision": float(right / guessed) if guessed else None,
                "recall": float(right / support) if support else None,
                "f1": float(2 * right / (support + guessed)) if support + guessed else None,
                "clips": int(support),
            }
        )
    return rows


def averaged_classes(matrix: np.ndarray, classes: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the classes that UAR and macro F1 of a confusion matrix (C, C) average over, and those in neither."""
    support, predicted = matrix.sum(1), matrix.sum(0)
    with_clips = [name for name, count in zip(classes, support, strict=True) if count]
    occurring = [name for name, count in zip(classes, support + predicted, strict=True) if count]
    return {"uar": with_clips, "macro_f1": occurring, "absent": [name for name in classes if name not in occurring]}


def paired_bootstrap(
    truth: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    classes: int,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> dict[str, float]:
    """WAF of `second` minus `first` on the same draws of clips or groups: difference, 95 % interval, two-sided p."""
    cells = (truth * classes + first) * classes + second
    tables = _redraw(cells[None], classes**3, groups, seed).reshape(-1, classes, classes, classes)
    gain = scores_from_confusion(tables.sum(-2))["waf"] - scores_from_confusion(tables.sum(-1))["waf"]
    value = [float(scores_from_confusion(confusion_matrix(truth, guess, classes))["waf"]) for guess in (first, second)]
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


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = 15) -> dict[str, Any]:
    """Expected calibration error (Naeini et al., 2015; Guo et al., 2017) of probabilities (N, C), and its bins.

    Clips are binned by their confidence, the probability of the guessed class, into `bins` equal widths; the error is
    the mean over clips of |accuracy - confidence| of their bin. A bin without clips has neither (None).
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    sums = [np.bincount(bin_of, weights, bins) for weights in (confidence, right.astype(float))]
    rows = [
        {
            "low": index / bins,
            "high": (index + 1) / bins,
            "confidence": float(sums[0][index] / count[index]) if count[index] else None,
            "accuracy": float(sums[1][index] / count[index]) if count[index] else None,
            "clips": int(count[index]),
        }
        for index in range(bins)
    ]
    return {"ece": float(np.abs(sums[1] - sums[0]).sum() / max(1, len(truth))), "bins": rows}

"""Scores of the field: from confusion matrices, per class, and of calibration. `significance` adds intervals and tests.

Scores are those of scikit-learn. Weighted F1 (WAF, MER2024's metric) is `f1_score(average="weighted")`; UAR is
`balanced_accuracy_score`, the mean recall of the classes that have clips; macro F1 is `f1_score(average="macro")`, the
mean F1 of the classes that occur in truth or prediction, so a class that is only predicted counts with an F1 of 0.
Scores are computed from confusion matrices, so that those of thousands of resampled corpora cost little.
"""

from typing import Any

import numpy as np

SCORES = ("waf", "accuracy", "uar", "macro_f1")


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

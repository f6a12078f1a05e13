"""Scores against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    precision_recall_fscore_support,
)
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from mertool.metrics import averaged_classes, confusion_matrix, per_class_scores, scores_from_confusion


def guesses(seed: int, count: int, true_classes: int, guessed_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth, guess = rng.integers(0, true_classes, count), rng.integers(0, guessed_classes, count)
    return truth, np.where(rng.random(count) < 0.5, truth % guessed_classes, guess)


# Balanced, a class that nobody has, a class nobody guesses, one clip.
CASES = [(0, 200, 6, 6), (1, 40, 4, 6), (2, 40, 6, 3), (3, 7, 2, 6), (4, 1, 6, 6)]


@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:A single label")
@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_scikit_learn(case):
    truth, guess = guesses(*case)
    matrix = confusion_matrix(truth, guess, 6)
    np.testing.assert_array_equal(matrix, sklearn_confusion_matrix(truth, guess, labels=range(6)))
    found = scores_from_confusion(matrix)
    assert found["waf"] == pytest.approx(f1_score(truth, guess, average="weighted", zero_division=0))
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert found["uar"] == pytest.approx(balanced_accuracy_score(truth, guess))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0))


@pytest.mark.parametrize("case", CASES)
def test_per_class_rows_are_those_of_scikit_learn(case):
    truth, guess = guesses(*case)
    names = tuple("abcdef")
    expected = precision_recall_fscore_support(truth, guess, labels=range(6), zero_division=np.nan)
    rows = per_class_scores(confusion_matrix(truth, guess, 6), names)
    assert [row["class"] for row in rows] == list(names)
    for row, (precision, recall, f1, support) in zip(rows, np.transpose(expected), strict=True):
        for name, value in (("precision", precision), ("recall", recall), ("f1", f1)):
            assert row[name] == (None if np.isnan(value) else pytest.approx(value)), name
        assert row["clips"] == support


def test_a_class_that_is_only_predicted_counts_in_macro_f1_but_not_in_uar():
    truth, guess = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    matrix = confusion_matrix(truth, guess, 4)
    found = scores_from_confusion(matrix)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3) == f1_score(truth, guess, average="macro")
    assert found["uar"] == pytest.approx(0.75)
    classes = averaged_classes(matrix, ("a", "b", "c", "d"))
    assert classes == {"uar": ["a", "b"], "macro_f1": ["a", "b", "c"], "absent": ["d"]}
    rows = per_class_scores(matrix, ("a", "b", "c", "d"))
    assert (rows[2]["recall"], rows[2]["precision"], rows[2]["f1"]) == (None, 0.0, 0.0)
    assert (rows[3]["recall"], rows[3]["precision"], rows[3]["f1"]) == (None, None, None)


def test_many_draws_at_once_are_many_single_ones():
    pairs = [guesses(seed, 30, 4, 4) for seed in range(5)]
    truth, guess = (np.stack(column) for column in zip(*pairs, strict=True))
    together = scores_from_confusion(confusion_matrix(truth, guess, 4))
    for number, pair in enumerate(pairs):
        alone = scores_from_confusion(confusion_matrix(*pair, 4))
        assert {name: together[name][number] for name in together} == alone

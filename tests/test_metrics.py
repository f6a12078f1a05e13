"""Scores against scikit-learn, intervals, and paired tests against figures made by hand."""

from math import comb

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    precision_recall_fscore_support,
)
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from mertool.metrics import (
    Interval,
    averaged_classes,
    confusion_matrix,
    mcnemar,
    paired_bootstrap,
    per_class_scores,
    score,
    scores_from_confusion,
)


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


def test_an_interval_holds_the_value_and_narrows_with_more_clips():
    widths = []
    for count in (50, 800):
        for name, interval in score(*guesses(0, count, 6, 6), 6).items():
            assert interval.low < interval.value < interval.high, name
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0] / 2


def test_an_interval_of_accuracy_is_about_the_binomial_one():
    truth = np.zeros(400, int)
    guess = (np.arange(400) % 4 == 0).astype(int)  # 75 % right
    found = score(truth, guess, 2)["accuracy"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (found.low, found.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.01)


def test_intervals_repeat_with_the_seed():
    data = guesses(0, 60, 6, 6)
    assert score(*data, 6, seed=3) == score(*data, 6, seed=3) != score(*data, 6, seed=4)


def test_speakers_that_differ_widen_the_interval():
    """Ten speakers who are all right or all wrong: ten draws, not four hundred."""
    groups = np.arange(400) // 40
    truth, guess = np.zeros(400, int), (groups % 2)
    by_clip, by_speaker = (score(truth, guess, 2, groups=given)["accuracy"] for given in (None, groups))
    assert by_clip.value == by_speaker.value == 0.5
    half = 1.96 * np.sqrt(0.25 / 10)
    assert (by_speaker.low, by_speaker.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.03)
    assert by_speaker.high - by_speaker.low > 4 * (by_clip.high - by_clip.low)


def test_groups_of_one_clip_are_clips():
    truth, guess = guesses(0, 300, 4, 4)
    ours, theirs = (score(truth, guess, 4, groups=given)["waf"] for given in (np.arange(300), None))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_names_of_groups_may_be_words():
    truth, guess = guesses(0, 60, 4, 4)
    numbers = np.arange(60) % 5
    words = np.array([f"speaker {n}" for n in numbers])
    assert score(truth, guess, 4, groups=numbers) == score(truth, guess, 4, groups=words)


def test_a_speaker_is_drawn_for_both_systems():
    """The second system is right on two more clips of each speaker: the gain does not vary between draws."""
    groups = np.arange(100) // 10
    truth = np.zeros(100, int)
    first = (np.arange(100) % 10 < 5).astype(int)
    second = (np.arange(100) % 10 < 3).astype(int)
    found = paired_bootstrap(truth, first, second, classes=2, groups=groups)
    assert found["low"] == pytest.approx(found["difference"]) == pytest.approx(found["high"])
    assert paired_bootstrap(truth, first, second, classes=2)["low"] < found["low"]


@pytest.mark.parametrize("groups", [None, np.arange(200) // 20], ids=["clips", "speakers"])
def test_repetitions_are_scored_on_the_same_draws(groups):
    truth, guess = guesses(0, 200, 4, 4)
    once, thrice = (score(truth, given, 4, groups=groups)["waf"] for given in (guess, np.stack([guess] * 3)))
    assert thrice.value == pytest.approx(once.value)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=0.015)
    other = guesses(1, 200, 4, 4)[1]
    both = score(truth, np.stack([guess, other]), 4, groups=groups)["waf"]
    assert both.value == pytest.approx((once.value + score(truth, other, 4)["waf"].value) / 2)


def test_an_interval_in_words():
    assert str(Interval(0.7304, 0.701, 0.7577)) == "73.0 [70.1, 75.8]"
    assert Interval(0.5, 0.4, 0.6).to_json() == {"value": 0.5, "low": 0.4, "high": 0.6}


def test_the_better_second_system_gains():
    truth = np.arange(300) % 3
    weak, strong = truth.copy(), truth.copy()
    weak[:150], strong[:30] = (truth[:150] + 1) % 3, (truth[:30] + 1) % 3
    forth, back = paired_bootstrap(truth, weak, strong, classes=3), paired_bootstrap(truth, strong, weak, classes=3)
    assert forth["difference"] == pytest.approx(
        f1_score(truth, strong, average="weighted") - f1_score(truth, weak, average="weighted")
    )
    assert 0 < forth["low"] < forth["difference"] < forth["high"]
    assert forth["p"] == pytest.approx(2 / 2001)
    assert back["difference"] == -forth["difference"]
    assert back["p"] == forth["p"]


def test_two_equal_systems_do_not_differ():
    truth, guess = guesses(0, 60, 4, 4)
    assert paired_bootstrap(truth, guess, guess, classes=4) == {"difference": 0, "low": 0, "high": 0, "p": 1}


def test_noise_alone_is_not_significant():
    truth = np.arange(200) % 2
    first, second = truth.copy(), truth.copy()
    first[:20], second[100:121] = 1 - truth[:20], 1 - truth[100:121]  # 20 against 21 errors
    found = paired_bootstrap(truth, first, second, classes=2)
    assert found["low"] < 0 < found["high"]
    assert found["p"] > 0.5


def test_mcnemar_by_hand():
    truth = np.zeros(20, int)
    first, second = np.zeros(20, int), np.zeros(20, int)
    second[:9] = 1  # only the first is right
    first[9:11] = 1  # only the second is right
    first[11:13] = second[11:13] = 1  # both wrong, counts for nobody
    tail = sum(comb(11, k) for k in range(3)) / 2**11
    assert mcnemar(truth, first, second) == {"only_first": 9, "only_second": 2, "p": pytest.approx(2 * tail)}


def test_mcnemar_of_equal_systems():
    truth, guess = guesses(0, 20, 3, 3)
    assert mcnemar(truth, guess, guess) == {"only_first": 0, "only_second": 0, "p": 1.0}

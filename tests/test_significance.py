"""Intervals and paired tests: against direct computation, against scipy, and by simulation."""

import sys
from math import comb
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from mertool.metrics import confusion_matrix, scores_from_confusion
from mertool.significance import NumberMeasure, holm, mcnemar, paired_test, score

sys.path.insert(0, str(Path(__file__).parent / "bench"))

from significance import (
    coverage,
    coverage_of_numbers,
    draw_clips,
    draw_numbers,
    rejection_rate,
    rejection_rate_of_numbers,
)


def waf(labels, predicted):
    return float(scores_from_confusion(confusion_matrix(labels, predicted, 6))["waf"])


def guesses(seed: int, count: int, true_classes: int, guessed_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth, guess = rng.integers(0, true_classes, count), rng.integers(0, guessed_classes, count)
    return truth, np.where(rng.random(count) < 0.5, truth % guessed_classes, guess)


def clips_of(n_speakers, gain=0.3, seed=0):
    return draw_clips(np.random.default_rng(seed), n_speakers, gain)


@pytest.mark.parametrize("by_speaker", [True, False])
def test_an_interval_is_the_jackknife_over_units(by_speaker):
    speakers, labels, _, predicted = clips_of(7)
    units = speakers if by_speaker else np.arange(len(labels))
    left_out = np.array([waf(labels[units != unit], predicted[units != unit]) for unit in np.unique(units)])
    count, sizes = len(left_out), np.bincount(units)
    error = np.sqrt((count - 1) / count * np.square(left_out - left_out.mean()).sum())
    quantile = stats.t.ppf(0.975, sizes.sum() ** 2 / np.square(sizes).sum() - 1)
    interval = score(labels, predicted, 6, groups=speakers if by_speaker else None)["waf"]
    value = waf(labels, predicted)
    assert interval.value == pytest.approx(value)
    n_effective = value * (1 - value) / error**2
    # Wilson's bounds are the shares from which the value is `quantile` standard errors away.
    for bound in (interval.low, interval.high):
        assert abs(value - bound) == pytest.approx(quantile * np.sqrt(bound * (1 - bound) / n_effective))
    assert interval.low < value < interval.high
    gain = paired_test(labels, (labels + 1) % 6, predicted, n_classes=6, groups=speakers if by_speaker else None)
    assert (gain["low"], gain["high"]) == pytest.approx((value - quantile * error, value + quantile * error))


@pytest.mark.parametrize("n_speakers", [2, 4, 5, 8])
def test_p_is_that_of_scipys_exact_test_of_paired_samples(n_speakers):
    speakers, labels, first, second = clips_of(n_speakers)
    rows = [np.flatnonzero(speakers == speaker) for speaker in range(n_speakers)]

    def difference(one, other):
        # scipy exchanges the numbers of speakers; 0 and 1 are the systems.
        swapped = np.concatenate([np.full(len(rows[i]), one[i] == 1) for i in range(n_speakers)])
        order = np.concatenate(rows)
        a = np.where(swapped, second[order], first[order])
        b = np.where(swapped, first[order], second[order])
        return abs(waf(labels[order], b) - waf(labels[order], a))

    systems = (np.zeros(n_speakers), np.ones(n_speakers))
    expected = stats.permutation_test(
        systems, difference, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    distribution = expected.null_distribution
    equal = np.mean(np.abs(distribution - expected.statistic) <= 1e-12)
    p = np.mean(distribution >= expected.statistic - 1e-12) - (equal / 2 if n_speakers >= 5 else 0)
    assert paired_test(labels, first, second, n_classes=6, groups=speakers)["p"] == pytest.approx(p)


def test_two_speakers_cannot_be_significant():
    labels = np.tile(np.arange(6), 20)
    first, second = (labels + 1) % 6, labels
    found = paired_test(labels, first, second, n_classes=6, groups=np.arange(120) // 60)
    assert (found["difference"], found["p"]) == (1.0, 0.5)
    assert found["low"] is found["high"] is None


@pytest.mark.parametrize("n_speakers", [2, 4, 5])
def test_fewer_than_five_speakers_give_no_interval(n_speakers):
    speakers, labels, _, predicted = clips_of(n_speakers)
    interval = score(labels, predicted, 6, groups=speakers)["uar"]
    assert (interval.low is None) == (n_speakers < 5)
    assert 0 < interval.value < 1


def test_one_clip_gives_no_interval():
    assert score(np.array([1]), np.array([1]), 2)["waf"].low is None


def test_scores_of_repetitions_are_their_mean():
    speakers, labels, first, second = clips_of(8)
    both = score(labels, np.stack([first, second]), 6, groups=speakers)
    for name, interval in both.items():
        alone = [score(labels, row, 6, groups=speakers)[name].value for row in (first, second)]
        assert interval.value == pytest.approx(np.mean(alone))
        assert interval.low < interval.value < interval.high


def test_nothing_depends_on_the_order_of_clips():
    speakers, labels, first, second = clips_of(20)
    order = np.random.default_rng(5).permutation(len(labels))
    for groups in (None, speakers):
        there = paired_test(labels, first, second, n_classes=6, groups=groups)
        moved = None if groups is None else groups[order]
        again = paired_test(labels[order], first[order], second[order], n_classes=6, groups=moved)
        assert again == pytest.approx(there)


def test_a_system_against_itself():
    speakers, labels, first, _ = clips_of(12)
    for groups in (None, speakers):
        found = paired_test(labels, first, first, n_classes=6, groups=groups)
        assert (found["difference"], found["low"], found["high"], found["p"]) == (0, 0, 0, 1)


def test_clips_alone_agree_with_mcnemar():
    labels = np.zeros(400, np.int64)
    first, second = (np.arange(400) < 40).astype(int), (np.arange(400) >= 376).astype(int)
    exact = mcnemar(labels, first, second)
    assert (exact["only_first"], exact["only_second"]) == (24, 40)
    assert exact["p"] == pytest.approx(stats.binomtest(24, 64).pvalue)
    assert paired_test(labels, first, second, n_classes=2)["p"] == pytest.approx(exact["p"], abs=0.02)


def accuracy_interval(n_right, n_clips):
    labels = np.zeros(n_clips, np.int64)
    return score(labels, (np.arange(n_clips) >= n_right).astype(np.int64), 2)["accuracy"]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("n_clips", [20, 60])
def test_coverage_over_few_clips(n_clips, share):
    """Summed over all numbers of right clips; plus and minus t standard errors cover 48 % for 20 clips at 0.97."""
    intervals = [accuracy_interval(n_right, n_clips) for n_right in range(n_clips + 1)]
    holds = np.array([interval.low <= share <= interval.high for interval in intervals])
    assert stats.binom.pmf(np.arange(n_clips + 1), n_clips, share) @ holds >= 0.93


@pytest.mark.parametrize(("n_right", "n_clips"), [(300, 400), (399, 400), (400, 400), (0, 400)])
def test_an_interval_of_accuracy_over_clips_is_that_of_wilson(n_right, n_clips):
    found = accuracy_interval(n_right, n_clips)
    expected = stats.binomtest(n_right, n_clips).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=5e-4)


@pytest.mark.parametrize("n_speakers", [5, 20])
def test_a_perfect_score_has_an_interval_of_as_many_clips_as_speakers(n_speakers):
    labels = np.arange(600) % 6
    found = score(labels, labels, 6, groups=np.arange(600) % n_speakers)
    quantile = stats.t.ppf(0.975, n_speakers - 1)
    for interval in found.values():
        assert (interval.value, interval.high) == (1.0, 1.0)
        assert interval.low == pytest.approx(1 / (1 + quantile**2 / n_speakers))


def test_holm_is_that_of_the_definition():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_an_interval_holds_the_value_and_narrows_with_more_clips():
    widths = []
    for count in (50, 800):
        for name, interval in score(*guesses(0, count, 6, 6), 6).items():
            assert interval.low < interval.value < interval.high, name
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0] / 2


def test_speakers_that_differ_widen_the_interval():
    """Ten speakers who are all right or all wrong: ten units, not four hundred."""
    groups = np.arange(400) // 40
    truth, guess = np.zeros(400, int), (groups % 2)
    by_clip, by_speaker = (score(truth, guess, 2, groups=given)["accuracy"] for given in (None, groups))
    assert by_clip.value == by_speaker.value == 0.5
    # Wilson's interval of a half among nine clips: the jackknife divides by one less than the number of speakers.
    quantile = stats.t.ppf(0.975, 9)
    half = quantile / 2 / np.sqrt(9 + quantile**2)
    assert (by_speaker.low, by_speaker.high) == pytest.approx((0.5 - half, 0.5 + half))
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


def test_a_speaker_is_left_out_of_both_systems():
    """The second system is right on two more clips of each speaker: the gain does not vary between speakers."""
    groups = np.arange(100) // 10
    truth = np.zeros(100, int)
    first = (np.arange(100) % 10 < 5).astype(int)
    second = (np.arange(100) % 10 < 3).astype(int)
    found = paired_test(truth, first, second, n_classes=2, groups=groups)
    assert found["low"] == pytest.approx(found["difference"]) == pytest.approx(found["high"])
    assert paired_test(truth, first, second, n_classes=2)["low"] < found["low"]


@pytest.mark.parametrize("groups", [None, np.arange(200) // 20], ids=["clips", "speakers"])
def test_repetitions_are_scored_on_the_same_units(groups):
    truth, guess = guesses(0, 200, 4, 4)
    once, thrice = (score(truth, given, 4, groups=groups)["waf"] for given in (guess, np.stack([guess] * 3)))
    assert thrice.value == pytest.approx(once.value)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-9)
    other = guesses(1, 200, 4, 4)[1]
    both = score(truth, np.stack([guess, other]), 4, groups=groups)["waf"]
    assert both.value == pytest.approx((once.value + score(truth, other, 4)["waf"].value) / 2)


def test_the_better_second_system_gains():
    truth = np.arange(300) % 3
    weak, strong = truth.copy(), truth.copy()
    weak[:150], strong[:30] = (truth[:150] + 1) % 3, (truth[:30] + 1) % 3
    forth, back = paired_test(truth, weak, strong, n_classes=3), paired_test(truth, strong, weak, n_classes=3)
    assert forth["difference"] == pytest.approx(
        f1_score(truth, strong, average="weighted") - f1_score(truth, weak, average="weighted")
    )
    assert 0 < forth["low"] < forth["difference"] < forth["high"]
    assert forth["p"] == pytest.approx(1 / 10_001)
    assert back["difference"] == -forth["difference"]
    assert back["p"] == forth["p"]


def test_noise_alone_is_not_significant():
    truth = np.arange(200) % 2
    first, second = truth.copy(), truth.copy()
    first[:20], second[100:121] = 1 - truth[:20], 1 - truth[100:121]  # 20 against 21 errors
    found = paired_test(truth, first, second, n_classes=2)
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


@pytest.mark.slow
@pytest.mark.parametrize("n_speakers", [6, 10, 24])
def test_levels_of_test_and_intervals(n_speakers):
    assert 0.035 <= rejection_rate(n_speakers, 12_000 if n_speakers == 6 else 1500) <= 0.065
    assert min(coverage(n_speakers, 1500).values()) >= 0.93


# ---------------------------------------------------------------- numbers


def ccc(truth, predicted):
    covariance = np.cov(truth, predicted, ddof=0)[0, 1]
    return 2 * covariance / (truth.var() + predicted.var() + (truth.mean() - predicted.mean()) ** 2)


@pytest.mark.parametrize("by_speaker", [True, False])
def test_intervals_of_numbers_are_the_jackknife_on_their_scales(by_speaker):
    speakers, truth, _, predicted = draw_numbers(np.random.default_rng(0), 7, 0.3)
    units = speakers if by_speaker else np.arange(len(truth))
    names, sizes = np.unique(units, return_counts=True)
    quantile = stats.t.ppf(0.975, sizes.sum() ** 2 / np.square(sizes).sum() - 1)
    found = NumberMeasure().score(truth, predicted, groups=speakers if by_speaker else None)
    scales = {
        "ccc": (ccc, np.arctanh, np.tanh),
        "mae": (lambda t, p: np.abs(t - p).mean(), np.log, np.exp),
    }
    for name, (statistic, forth, back) in scales.items():
        left_out = forth([statistic(truth[units != unit], predicted[units != unit]) for unit in names])
        error = np.sqrt((len(names) - 1) / len(names) * np.square(left_out - left_out.mean()).sum())
        centre = forth(statistic(truth, predicted))
        expected = (back(centre - quantile * error), back(centre + quantile * error))
        assert (found[name].low, found[name].high) == pytest.approx(expected)


def test_p_of_numbers_is_that_of_all_exchanges():
    speakers, truth, first, second = draw_numbers(np.random.default_rng(1), 6, 0.3)
    differences = []
    for pattern in range(2**6):
        exchanged = (pattern >> speakers) & 1 == 1
        one, other = np.where(exchanged, second, first), np.where(exchanged, first, second)
        differences.append(ccc(truth, other) - ccc(truth, one))
    observed = differences[0]
    sizes = np.abs(differences)
    p = np.mean(sizes >= abs(observed) - 1e-12) - np.mean(np.abs(sizes - abs(observed)) <= 1e-12) / 2
    found = NumberMeasure().paired_test(truth, first, second, groups=speakers)
    assert (found["difference"], found["p"]) == (pytest.approx(observed), pytest.approx(p))
    back = NumberMeasure().paired_test(truth, second, first, groups=speakers)
    assert (back["difference"], back["p"]) == (pytest.approx(-observed), pytest.approx(p))


def test_numbers_over_clips_are_tested_by_drawn_exchanges():
    _, truth, first, _ = draw_numbers(np.random.default_rng(2), 6, 0.0)
    better = truth + 0.3 * (first - truth)
    found = NumberMeasure().paired_test(truth, first, better, name="mae")
    assert found["unit"] == "clips"
    assert found["difference"] < 0
    assert found["p"] == pytest.approx(1 / 10_001)
    assert NumberMeasure().paired_test(truth, first, first)["p"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("n_speakers", [6, 10, 24])
def test_levels_of_test_and_intervals_of_numbers(n_speakers):
    assert 0.035 <= rejection_rate_of_numbers(n_speakers, 2000) <= 0.075
    assert min(coverage_of_numbers(n_speakers, 1500).values()) >= 0.92

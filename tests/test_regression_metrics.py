"""Scores of numbers: against scipy, scikit-learn, and the formulas of MMSA."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error

from mertool.regression_metrics import moments, scores_from_moments
from mertool.significance import NumberMeasure, SentimentMeasure


def draw(seed=0, n=400):
    rng = np.random.default_rng(seed)
    truth = np.round(rng.uniform(-3, 3, n) * 5) / 5  # ratings are means of five, so zeros and halves occur
    return truth, 0.6 * truth + rng.normal(0.3, 1, n)


def values(measure, truth, predicted):
    return {name: interval.value for name, interval in measure.score(truth, predicted).items()}


@pytest.mark.parametrize("shift", [0.0, 900.0])
def test_scores_are_those_of_scipy_and_scikit_learn(shift):
    truth, predicted = draw()
    truth, predicted = truth + shift, predicted + shift
    found = values(NumberMeasure(), truth, predicted)
    assert found["pearson"] == pytest.approx(pearsonr(truth, predicted).statistic)
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, predicted))
    assert found["mse"] == pytest.approx(mean_squared_error(truth, predicted))
    covariance = np.cov(truth, predicted, ddof=0)[0, 1]
    lin = 2 * covariance / (truth.var() + predicted.var() + (truth.mean() - predicted.mean()) ** 2)
    assert found["ccc"] == pytest.approx(lin)


def test_ccc_by_hand():
    # means 2 and 3, variances 2/3 and 2/3, covariance 1/3: (2 / 3) / (4 / 3 + 1)
    assert values(NumberMeasure(), np.array([1.0, 2, 3]), np.array([3.0, 2, 4]))["ccc"] == pytest.approx(2 / 7)


def test_sentiment_scores_are_those_of_mmsa():
    """`__eval_mosei_regression` of thuiar/MMSA: clip and round, >= 0 with zeros, > 0 without the clips at zero."""
    truth, predicted = draw()
    predicted[:5], truth[:5] = [0.5, 1.5, -2.5, 0.0, -0.0], [0.0, 2.0, -2.0, 0.0, -1.0]
    found = values(SentimentMeasure(), truth, predicted)
    for name, end in (("acc7", 3), ("acc5", 2)):
        rounded = [np.round(np.clip(each, -end, end)) for each in (truth, predicted)]
        assert found[name] == pytest.approx(np.mean(rounded[0] == rounded[1]))
    assert found["acc2_with_zero"] == pytest.approx(accuracy_score(truth >= 0, predicted >= 0))
    assert found["f1_with_zero"] == pytest.approx(f1_score(truth >= 0, predicted >= 0, average="weighted"))
    rows = truth != 0
    assert 0 < rows.sum() < len(rows)
    assert found["acc2_without_zero"] == pytest.approx(accuracy_score(truth[rows] > 0, predicted[rows] > 0))
    expected = f1_score(truth[rows] > 0, predicted[rows] > 0, average="weighted")
    assert found["f1_without_zero"] == pytest.approx(expected)


def test_mmsa_rounds_halves_to_even():
    truth, predicted = np.array([0.0, 2.0, -2.0, 3.0]), np.array([0.5, 1.5, -2.5, 9.0])
    assert values(SentimentMeasure(), truth, predicted)["acc7"] == 1.0


@pytest.mark.parametrize("constant", [0.0, 0.3, 3.7])
def test_a_constant_prediction_has_no_correlation(constant):
    truth, _ = draw()
    found = values(NumberMeasure(), truth, np.full_like(truth, constant))
    assert (found["ccc"], found["pearson"]) == (0.0, 0.0)
    assert values(NumberMeasure(), np.full_like(truth, constant), truth)["ccc"] == 0.0


def test_a_perfect_prediction():
    truth, _ = draw()
    found = values(SentimentMeasure(), truth, truth)
    assert (found["ccc"], found["mae"], found["acc7"], found["acc2_without_zero"]) == (pytest.approx(1), 0, 1, 1)
    interval = NumberMeasure().score(truth, truth)["ccc"]
    assert interval.low <= interval.value <= interval.high


def test_sums_of_speakers_are_sums_of_clips():
    truth, predicted = draw()
    groups = np.arange(len(truth)) % 7
    total = NumberMeasure().units(truth, predicted[None], groups).total[0]
    scores = scores_from_moments(moments(truth, predicted).sum(0))
    assert {name: float(value) for name, value in NumberMeasure().scores(total).items()} == pytest.approx(
        {name: float(value) for name, value in scores.items()}
    )

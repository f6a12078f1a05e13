"""Temperature and prior correction, on data whose temperature and prior are known."""

import numpy as np
import pytest
from scipy.special import softmax

from mertool.errors import MertoolError
from mertool.fusion.calibration import (
    MIN_PRIOR,
    Correction,
    apply_correction,
    class_prior,
    cross_entropy,
    em_prior,
    fit_temperature,
    prior_effect,
    temperature_effect,
)
from mertool.metrics import calibration_error

UNIFORM = np.full(4, 0.25)


def drawn(count, prior=UNIFORM, spread=1.0, seed=0):
    """Logits (N, C) that are true log posteriors under `prior`, and labels (N,): one Gaussian a class."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(prior), count, p=prior)
    points = 2 * np.eye(len(prior))[labels] + rng.normal(0, 1, (count, len(prior)))
    return (2 * points + np.log(prior)) * spread, labels


# ---------------------------------------------------------------- what is applied


def test_no_correction_is_softmax():
    logits, _ = drawn(50)
    np.testing.assert_allclose(apply_correction(logits, Correction()), softmax(logits, -1))


def test_temperature_changes_no_label():
    logits, _ = drawn(500)
    hot = apply_correction(logits, Correction(3.0))
    assert (hot.argmax(1) == logits.argmax(1)).all()
    assert hot.max(1).mean() < softmax(logits, -1).max(1).mean()


def test_the_prior_multiplies_what_the_temperature_gave():
    logits, train, target = np.array([[1.0, 3.0]]), (0.8, 0.2), (0.5, 0.5)
    plain = softmax(logits / 2, -1) * np.array([0.5 / 0.8, 0.5 / 0.2])
    np.testing.assert_allclose(apply_correction(logits, Correction(2.0, train, target)), plain / plain.sum())


def test_correction_survives_json():
    for correction in (Correction(1.5), Correction(0.7, (0.25, 0.75), (0.5, 0.5))):
        assert Correction.from_json(correction.to_json()) == correction


@pytest.mark.parametrize(
    "given, message",
    [
        ((0.0,), "temperature 0.0: give a number above 0"),
        ((float("nan"),), "temperature nan"),
        ((1.0, (0.5, 0.5)), "needs both priors"),
        ((1.0, (1.0, 0.0), (0.5, 0.5)), "the train prior"),
        ((1.0, (0.5, 0.5), (0.5, 0.6)), "the target prior"),
        ((1.0, (0.5, 0.5), (0.2, 0.3, 0.5)), "has 2 classes, the target prior 3"),
    ],
)
def test_corrections_that_are_none(given, message):
    with pytest.raises(MertoolError, match=message):
        Correction(*given)


# ---------------------------------------------------------------- temperature


@pytest.mark.parametrize("spread", [0.5, 1.0, 4.0])
def test_the_temperature_undoes_the_spread_of_logits(spread):
    logits, labels = drawn(4000, spread=spread)
    assert fit_temperature(logits, labels) == pytest.approx(spread, rel=0.06)


def test_the_fitted_temperature_is_the_best():
    logits, labels = drawn(300, spread=3)
    best = fit_temperature(logits, labels)
    losses = [cross_entropy(logits / t, labels) for t in (0.95 * best, best, 1.05 * best)]
    assert losses[1] == min(losses)


def test_overconfident_logits_are_calibrated_better_on_clips_that_did_not_fit_it():
    logits, labels = drawn(1500, spread=4)
    effect = temperature_effect(logits, labels, np.arange(1500) % 5)
    assert effect["before"]["ece"] > 0.08
    assert effect["after"]["ece"] < 0.05
    assert effect["after"]["cross_entropy"] < effect["before"]["cross_entropy"]


def test_each_fold_is_judged_by_the_temperature_of_the_others():
    """Fold 1 is right everywhere, fold 0 wrong everywhere: each is scaled the wrong way."""
    logits = np.tile([2.0, 0.0], (20, 1))
    labels = np.repeat([0, 1], 10)
    effect = temperature_effect(logits, labels, labels)
    assert effect["after"]["cross_entropy"] > effect["before"]["cross_entropy"]


def test_no_labelled_clip_is_an_error():
    with pytest.raises(MertoolError, match="no clip to fit a temperature on"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, int))


# ---------------------------------------------------------------- prior


@pytest.mark.parametrize("target", [(0.6, 0.2, 0.1, 0.1), (0.25, 0.25, 0.25, 0.25), (0.02, 0.08, 0.4, 0.5)])
def test_em_finds_the_prior_of_unlabelled_clips(target):
    """Posteriors under one prior, clips drawn under another."""
    train = np.array([0.4, 0.3, 0.2, 0.1])
    logits, _ = drawn(8000, np.array(target))
    under_train = softmax(logits - np.log(target) + np.log(train), -1)
    shift = em_prior(under_train, train)
    assert shift.converged
    np.testing.assert_allclose(shift.prior, target, atol=0.02)
    assert shift.prior.sum() == pytest.approx(1)
    assert shift.shifted


def test_the_same_prior_is_no_shift():
    logits, _ = drawn(1000, np.array([0.4, 0.3, 0.2, 0.1]), seed=3)
    shift = em_prior(softmax(logits, -1), np.array([0.4, 0.3, 0.2, 0.1]))
    assert not shift.shifted
    np.testing.assert_allclose(shift.prior, [0.4, 0.3, 0.2, 0.1], atol=0.05)


def test_the_answer_is_a_fixed_point():
    logits, _ = drawn(2000)
    p = softmax(logits, -1)
    prior = em_prior(p, UNIFORM).prior
    joint = p * prior
    np.testing.assert_allclose((joint / joint.sum(1, keepdims=True)).mean(0), prior, atol=1e-5)


def test_a_class_that_no_clip_looks_like_keeps_a_least_share():
    logits, _ = drawn(400)
    probabilities = softmax(logits - np.array([0, 0, 0, 50.0]), -1)
    shift = em_prior(probabilities, UNIFORM)
    assert shift.prior[3] == pytest.approx(MIN_PRIOR)
    assert shift.prior.sum() == pytest.approx(1)
    Correction(1.0, tuple(UNIFORM), tuple(shift.prior))


def test_certain_predictions_do_not_break_em():
    shift = em_prior(np.eye(4)[[0, 0, 1, 2]], UNIFORM)
    assert np.isfinite(shift.prior).all()
    assert shift.prior[0] == pytest.approx(0.5, abs=0.01)


def test_no_unlabelled_prediction_is_an_error():
    with pytest.raises(MertoolError, match="no unlabelled clip has a prediction"):
        em_prior(np.zeros((0, 4)), UNIFORM)


def test_a_class_without_clips_has_a_prior_too():
    prior = class_prior(np.array([0, 0, 1]), 3)
    np.testing.assert_allclose(prior, [3 / 6, 2 / 6, 1 / 6])


def test_the_effect_of_a_prior_correction():
    """Clips of training under one prior; unlabelled ones under another, where the correction must gain."""
    train, target = np.array([0.55, 0.15, 0.15, 0.15]), np.array([0.1, 0.1, 0.2, 0.6])
    logits, labels = drawn(6000, train)
    there, truth = drawn(6000, target, seed=1)
    there = there - np.log(target) + np.log(train)
    correction = Correction(1.0, tuple(train), tuple(em_prior(softmax(there, -1), train).prior))
    effect = prior_effect(logits, labels, there, correction=correction)
    assert effect["as_they_are"]["after"] < effect["as_they_are"]["before"]
    assert effect["at_target"]["after"] > effect["at_target"]["before"] + 0.05
    assert effect["unlabelled_clips"] == 6000
    assert 0 < effect["labels_changed"] < 6000
    # What it promises is what the target's labels, which it does not see, say.
    from sklearn.metrics import f1_score

    for name, c in (("before", Correction()), ("after", correction)):
        real = f1_score(truth, apply_correction(there, c).argmax(1), average="weighted")
        assert effect["at_target"][name] == pytest.approx(real, abs=0.02)


# ---------------------------------------------------------------- calibration error


def test_calibration_error_of_a_table_done_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.4, 0.6]])
    table = calibration_error(probabilities, np.array([0, 1, 0, 1]), bins=10)
    # Bin (0.9, 1]: confidence 0.95, accuracy 0.5. Bin (0.5, 0.6]: confidences 0.55 and 0.6, both right.
    assert table["ece"] == pytest.approx((2 * 0.45 + 2 * 0.425) / 4)
    assert [row["clips"] for row in table["bins"]] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert table["bins"][9]["accuracy"] == pytest.approx(0.5)
    assert table["bins"][0]["confidence"] is None


def test_true_posteriors_are_calibrated():
    logits, labels = drawn(20000)
    assert calibration_error(softmax(logits, -1), labels)["ece"] < 0.01

"""The probe is scikit-learn's logistic regression (C = 0.1) on features standardised per fold."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mertool.probing.linear import cross_validate

CPU = torch.device("cpu")


def data(count=240, channels=40, classes=5, noise=3.0, seed=0):
    """Correlated channels of very different scale, as in hidden states."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = rng.normal(0, 1, (classes, channels))
    mix = rng.normal(0, 1, (channels, channels)) / np.sqrt(channels)
    values = (centres[labels] + noise * rng.normal(0, 1, (count, channels)) @ mix) * np.geomspace(0.01, 50, channels)
    return (values + rng.normal(0, 5, channels)).astype(np.float32), labels, np.arange(count) % 4


def reference(values, labels, fold_of):
    logits = np.zeros((len(labels), labels.max() + 1))
    for fold in range(fold_of.max() + 1):
        train = fold_of != fold
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000, tol=1e-8))
        probe.fit(values[train], labels[train])
        logits[~train] = probe.decision_function(values[~train])
    return logits


def test_logits_are_scikit_learns():
    values, labels, fold_of = data()
    ours = cross_validate(values, labels, fold_of, n_classes=5, device=CPU)
    theirs = reference(values.astype(np.float64), labels, fold_of)
    assert np.mean(ours.argmax(1) == theirs.argmax(1)) >= 0.99
    centred = ours - ours.mean(1, keepdims=True)
    np.testing.assert_allclose(centred, theirs - theirs.mean(1, keepdims=True), atol=0.02)


def test_more_channels_than_clips():
    values, labels, fold_of = data(count=60, channels=300, noise=1.0)
    ours = cross_validate(values, labels, fold_of, n_classes=5, device=CPU)
    theirs = reference(values.astype(np.float64), labels, fold_of)
    assert np.mean(ours.argmax(1) == theirs.argmax(1)) >= 0.95


def test_a_large_common_offset_does_no_harm():
    values, labels, fold_of = data(channels=10)
    scaled = (values - values.mean(0)) / values.std(0)
    plain = cross_validate(scaled, labels, fold_of, n_classes=5, device=CPU).argmax(1)
    shifted = cross_validate(scaled + 50, labels, fold_of, n_classes=5, device=CPU).argmax(1)
    assert np.mean(plain == shifted) >= 0.98


def test_random_labels_give_chance():
    values, _, fold_of = data(count=400, channels=100)
    labels = np.random.default_rng(9).integers(0, 5, 400)
    right = np.mean(cross_validate(values, labels, fold_of, n_classes=5, device=CPU).argmax(1) == labels)
    assert 0.1 < right < 0.3


def test_what_separates_is_found():
    values, labels, fold_of = data(noise=0.2)
    assert np.mean(cross_validate(values, labels, fold_of, n_classes=5, device=CPU).argmax(1) == labels) > 0.98


def test_a_constant_channel_and_an_absent_class():
    values, labels, fold_of = data(classes=3)
    values[:, 4] = 7.0
    logits = cross_validate(values, labels, fold_of, n_classes=6, device=CPU)
    assert np.isfinite(logits).all()
    assert logits.argmax(1).max() <= 2


@pytest.mark.parametrize("fold", [0, 3])
def test_held_out_labels_are_not_read(fold):
    values, labels, fold_of = data()
    wrong = np.where(fold_of == fold, (labels + 1) % 5, labels)
    a, b = (cross_validate(values, y, fold_of, n_classes=5, device=CPU)[fold_of == fold] for y in (labels, wrong))
    # The folds share one optimiser, so they may stop a step apart; the answers are the same.
    np.testing.assert_allclose(a, b, atol=0.02)


def test_held_out_values_do_not_move_the_scale():
    values, labels, fold_of = data(count=80)
    other = values.copy()
    other[np.flatnonzero(fold_of == 0)[0]] *= 1000
    rows = np.flatnonzero(fold_of == 0)[1:]
    a, b = (cross_validate(x, labels, fold_of, n_classes=5, device=CPU)[rows] for x in (values, other))
    np.testing.assert_allclose(a, b, atol=0.02)

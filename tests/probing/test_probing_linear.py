"""The probe is scikit-learn's logistic regression on standardised features; its penalty is chosen in training."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mertool.probing.linear import ProbeTrainingSet, cross_validate, fit_probes
from mertool.probing.nested_cv import PENALTIES, TWO_FOLD_PENALTY

CPU = torch.device("cpu")


def data(count=240, channels=40, classes=5, noise=3.0, seed=0):
    """Correlated channels of very different scale, as in hidden states."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = rng.normal(0, 1, (classes, channels))
    mix = rng.normal(0, 1, (channels, channels)) / np.sqrt(channels)
    values = (centres[labels] + noise * rng.normal(0, 1, (count, channels)) @ mix) * np.geomspace(0.01, 50, channels)
    return (values + rng.normal(0, 5, channels)).astype(np.float32), labels, np.arange(count) % 4


def sklearn_probe(inverse_penalty):
    return make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=5000, tol=1e-8))


def chosen_penalty(values, labels, folds):
    """The C of least cross-entropy by scikit-learn's own cross-validation."""
    losses = [
        log_loss(
            labels,
            cross_val_predict(
                sklearn_probe(inverse), values, labels, cv=PredefinedSplit(folds), method="predict_proba"
            ),
        )
        for inverse in PENALTIES["logistic"]
    ]
    return PENALTIES["logistic"][int(np.argmin(losses))]


def reference(values, labels, fold_of):
    logits = np.zeros((len(labels), labels.max() + 1))
    for fold in range(fold_of.max() + 1):
        train = fold_of != fold
        probe = sklearn_probe(chosen_penalty(values[train], labels[train], fold_of[train]))
        probe.fit(values[train], labels[train])
        logits[~train] = probe.decision_function(values[~train])
    return logits


def centred(logits):
    return logits - logits.mean(1, keepdims=True)


@pytest.mark.parametrize("noise", [1.0, 3.0])
def test_logits_are_scikit_learns(noise):
    values, labels, fold_of = data(noise=noise)
    ours = cross_validate(values, labels, fold_of, n_classes=5, device=CPU)
    theirs = reference(values.astype(np.float64), labels, fold_of)
    assert np.mean(ours.argmax(1) == theirs.argmax(1)) >= 0.99
    np.testing.assert_allclose(centred(ours), centred(theirs), atol=0.02)


def test_more_channels_than_clips():
    values, labels, fold_of = data(count=60, channels=300, noise=1.0)
    ours = cross_validate(values, labels, fold_of, n_classes=5, device=CPU)
    theirs = reference(values.astype(np.float64), labels, fold_of)
    assert np.mean(ours.argmax(1) == theirs.argmax(1)) >= 0.95


def test_the_penalty_of_each_layer_and_training_set_is_scikit_learns():
    """Two layers, the second much noisier, and two training sets, one of which has no folds to choose on."""
    clean, labels, _ = data(count=150, channels=20, noise=0.8)
    noisy = data(count=150, channels=20, noise=0.8, seed=3)[0]
    features = np.stack([clean, noisy])
    rows = np.arange(100)
    sets = [
        ProbeTrainingSet(rows=rows, inner_folds=rows % 5),
        ProbeTrainingSet(rows=rows + 50, inner_folds=np.zeros(100, int)),
    ]
    probes = fit_probes(torch.from_numpy(features), torch.from_numpy(labels), sets, n_classes=5)
    expected = [chosen_penalty(layer[:100].astype(np.float64), labels[:100], rows % 5) for layer in features]
    assert expected[0] != expected[1]
    np.testing.assert_allclose(probes.inverse_penalty[:, 0], expected)
    np.testing.assert_allclose(probes.inverse_penalty[:, 1], TWO_FOLD_PENALTY["logistic"])
    for layer, values in enumerate(features.astype(np.float64)):
        for number, inverse in enumerate((expected[layer], TWO_FOLD_PENALTY["logistic"])):
            train = sets[number].rows
            theirs = sklearn_probe(inverse).fit(values[train], labels[train]).decision_function(values)
            ours = probes.logits(torch.from_numpy(features), number)[layer].numpy()
            np.testing.assert_allclose(centred(ours), centred(theirs), atol=0.02)


def test_a_probe_of_noise_is_not_over_confident():
    """A fixed C = 0.1 gave a cross-entropy far above that of chance here."""
    values, _, fold_of = data(count=240, channels=200)
    labels = np.random.default_rng(9).integers(0, 5, 240)
    logits = torch.from_numpy(cross_validate(values, labels, fold_of, n_classes=5, device=CPU))
    loss = float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)))
    assert loss < 1.1 * np.log(5)


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

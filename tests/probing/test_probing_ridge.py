"""Closed-form ridge is scikit-learn's; taking folds off the Gram is as good as never adding them."""

import numpy as np
import pytest
import torch
from fixtures.emulated_device import DEVICES, use_device
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from mertool.probing import ridge
from mertool.probing.ridge import Ridge, class_targets

COUNT, CHANNELS, CLASSES, FOLDS = 150, 20, 4, 5
PENALTIES = (0.1, 10.0, 1000.0)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, COUNT)
    turn = rng.normal(0, 1, (2, CHANNELS, CHANNELS)) / np.sqrt(CHANNELS)
    x = rng.normal(0, 1, (2, CLASSES, CHANNELS))[:, labels] + 2 * rng.normal(0, 1, (2, COUNT, CHANNELS))
    x = x @ turn * np.geomspace(0.01, 50, CHANNELS) + 3
    return torch.tensor(x, dtype=torch.float32), torch.as_tensor(labels), torch.arange(COUNT) % FOLDS


def scores(data, without, penalties=PENALTIES):
    x, labels, fold_of = data
    fitted = Ridge.from_features(x, class_targets(labels, CLASSES), fold_of, n_folds=FOLDS)
    return fitted.scores(fitted.solve(without, penalties), torch.arange(x.shape[1]))


@pytest.mark.parametrize("without", [(0,), (1, 3)])
def test_decision_values_are_scikit_learns(data, without):
    ours = scores(data, without)
    train = ~np.isin(data[2].numpy(), without)
    for layer in range(2):
        x = data[0][layer].double().numpy()
        x = StandardScaler().fit(x[train]).transform(x)
        for number, penalty in enumerate(PENALTIES):
            model = RidgeClassifier(alpha=penalty).fit(x[train], data[1].numpy()[train])
            np.testing.assert_allclose(ours[layer, number].T, model.decision_function(x), atol=2e-4)


def test_down_dating_is_exact(data):
    x, labels, fold_of = data
    rows = torch.nonzero(fold_of != 2)[:, 0]
    one_fold = torch.zeros(len(rows), dtype=torch.int64)
    ridge_without_fold = Ridge.from_features(x[:, rows], class_targets(labels[rows], CLASSES), one_fold, n_folds=1)
    direct = ridge_without_fold.scores(ridge_without_fold.solve([], PENALTIES), torch.arange(len(rows)))
    np.testing.assert_allclose(scores(data, [2])[..., rows], direct, atol=2e-4)


def test_many_penalties_from_one_decomposition_are_those_one_by_one(data, monkeypatch):
    one_by_one = scores(data, [0])
    monkeypatch.setattr(ridge, "EIGEN_FROM", {"cpu": 1})
    np.testing.assert_allclose(scores(data, [0]), one_by_one, atol=1e-5)


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("eigen_from", [1, 100])
def test_every_device_gives_the_decision_values(kind, eigen_from, data, monkeypatch):
    monkeypatch.setattr(ridge, "EIGEN_FROM", dict.fromkeys(("cpu", "cuda", "mps"), eigen_from))
    expected = scores(data, [0])
    with use_device(kind) as device:
        found = scores([part.to(device) for part in data], [0])
        assert found.device.type == device.type
        np.testing.assert_allclose(found.cpu(), expected, atol=2e-4)


def test_layers_together_are_layers_alone(data):
    together = scores(data, [1])
    for layer in range(2):
        np.testing.assert_allclose(together[[layer]], scores((data[0][[layer]], *data[1:]), [1]), atol=1e-5)


def test_held_out_clips_do_not_move_the_fit(data):
    x, labels, fold_of = data
    wild = x.clone()
    wild[:, fold_of == 0] *= 100
    kept = fold_of != 0
    wrong = torch.where(kept, labels, (labels + 1) % CLASSES)
    np.testing.assert_allclose(scores((wild, wrong, fold_of), [0])[..., kept], scores(data, [0])[..., kept], atol=1e-3)


def test_more_channels_than_clips_and_a_constant_channel():
    x = torch.randn(1, 12, 40, generator=torch.Generator().manual_seed(0))
    x[:, :, 3] = 5.0
    found = scores((x, torch.arange(12) % CLASSES, torch.arange(12) % FOLDS), [0], (1.0,))
    assert torch.isfinite(found).all()

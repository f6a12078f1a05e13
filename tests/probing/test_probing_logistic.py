"""Logistic regression of many problems at once has scikit-learn's optimum, and each is what it would be alone."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mertool.probing import logistic
from mertool.probing.logistic import BatchedLogisticRegression

COUNT, CHANNELS, CLASSES = 200, 24, 4


@pytest.fixture(scope="module")
def data():
    """Three layers of correlated channels of different sizes, labels, four training parts."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, COUNT)
    means = rng.normal(0, 1, (3, CLASSES, CHANNELS))
    turn = rng.normal(0, 1, (3, CHANNELS, CHANNELS)) / np.sqrt(CHANNELS)
    x = (means[:, labels] + 2 * rng.normal(0, 1, (3, COUNT, CHANNELS))) @ turn * np.geomspace(0.01, 50, CHANNELS) + 3
    trains = np.stack([np.arange(COUNT) % 4 != fold for fold in range(4)])
    return torch.tensor(x, dtype=torch.float32), torch.as_tensor(labels), torch.as_tensor(trains).float()


def solve(data, strength, start=None):
    labels = data[1].expand(len(data[2]), -1)
    solver = BatchedLogisticRegression.from_features(data[0], labels, data[2], n_classes=CLASSES)
    return solver, solver.solve(strength, start)


@pytest.mark.parametrize("strength", [1e-3, 0.1, 1.0])
def test_the_optimum_is_scikit_learns(data, strength):
    solver, found = solve(data, strength)
    assert found.converged.all()
    logits = solver.logits(found.weights)
    for layer in range(3):
        for part, train in enumerate(data[2].bool().numpy()):
            scaler = StandardScaler().fit(data[0][layer].double().numpy()[train])
            x = scaler.transform(data[0][layer].double().numpy())
            model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(x[train], data[1].numpy()[train])
            theirs, ours = model.decision_function(x), logits[layer, part].T.double().numpy()
            ours -= ours.mean(1, keepdims=True)
            np.testing.assert_allclose(ours, theirs - theirs.mean(1, keepdims=True), atol=0.02)


def test_a_problem_is_solved_as_if_alone(data):
    _, together = solve(data, 0.1)
    for layer, part in ((0, 1), (2, 3)):
        _, alone = solve((data[0][[layer]], data[1], data[2][[part]]), 0.1)
        np.testing.assert_allclose(together.weights[layer, part], alone.weights[0, 0], atol=2e-3)


def test_the_largest_gradient_entry_is_below_the_tolerance(data):
    solver, found = solve(data, 0.1)
    weights = found.weights.clone().requires_grad_()
    logits = solver.logits(weights)
    entropy = logits.logsumexp(2) - logits[:, :, data[1], torch.arange(COUNT)]
    entropy = (entropy * solver.sample_weight).sum(-1)
    penalty = weights[..., :-1].square().sum((2, 3)) / (2 * 0.1 * solver.n_training)
    (entropy + penalty).sum().backward()
    assert weights.grad.abs().max() < 1.2 * logistic.TOLERANCE
    np.testing.assert_allclose(weights.grad.abs().amax((2, 3)), found.gradient, atol=1e-6)


def test_a_warm_start_leads_to_the_same_optimum_sooner(data):
    solver, near = solve(data, 0.05)
    _, cold = solve(data, 0.1)
    warm = solver.solve(0.1, near.weights)
    np.testing.assert_allclose(solver.logits(warm.weights), solver.logits(cold.weights), atol=0.02)
    assert warm.steps.float().mean() < cold.steps.float().mean()


def test_the_preconditioner_saves_steps_and_not_the_optimum(data, monkeypatch):
    solver, with_gram = solve(data, 0.1)
    monkeypatch.setattr(logistic, "MAX_GRAM_CHANNELS", 1)
    _, without = solve(data, 0.1)
    np.testing.assert_allclose(solver.logits(with_gram.weights), solver.logits(without.weights), atol=0.05)
    assert with_gram.steps.float().mean() < without.steps.float().mean()


def test_each_problem_has_its_own_labels(data):
    other = torch.as_tensor(np.random.default_rng(1).permutation(data[1].numpy()))
    both = BatchedLogisticRegression.from_features(
        data[0], torch.stack([data[1], other]), data[2][:2], n_classes=CLASSES
    )
    alone = BatchedLogisticRegression.from_features(data[0], other[None], data[2][1:2], n_classes=CLASSES)
    ours, theirs = (solver.logits(solver.solve(0.1).weights) for solver in (both, alone))
    np.testing.assert_allclose(ours[:, 1], theirs[:, 0], atol=0.02)


def test_features_far_off_and_channels_that_are_constant(data):
    x = data[0].clone()
    x[:, :, 0], x[:, :, 1] = 7.0, x[:, :, 1] + 1e4
    solver, found = solve((x, *data[1:]), 0.1)
    assert torch.isfinite(solver.logits(found.weights)).all()
    assert (found.weights[:, :, :, 0] == 0).all()


def test_more_channels_than_clips(data):
    some = slice(0, 16)
    solver, found = solve((data[0][:, some], data[1][some], data[2][:, some]), 1.0)
    assert found.converged.all()
    right = solver.logits(found.weights).argmax(2) == data[1][some]
    assert right[data[2][:, some].bool().expand(3, -1, -1)].float().mean() > 0.95

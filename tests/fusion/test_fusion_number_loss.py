"""The loss of numbers: against its formula, and what does not change it."""

import numpy as np
import pytest
import torch

from mertool.fusion.number_loss import number_losses


def losses(outputs, numbers, weights=None, mean=0.0, std=1.0):
    members = len(outputs)
    weights = torch.ones_like(numbers) if weights is None else weights
    scale = {"mean": torch.full((members, 1), mean), "std": torch.full((members, 1), std)}
    return number_losses(outputs[..., None], numbers, weights, **scale)


def draw(seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(2, 40, generator=generator)
    return 0.5 * numbers + 0.2 + torch.randn(2, 40, generator=generator), numbers


def test_it_is_squared_error_and_one_minus_ccc():
    outputs, numbers = draw()
    for found, p, t in zip(losses(outputs, numbers), outputs.numpy(), numbers.numpy(), strict=True):
        ccc = 2 * np.cov(p, t, ddof=0)[0, 1] / (p.var() + t.var() + (p.mean() - t.mean()) ** 2)
        assert float(found) == pytest.approx(np.mean((p - t) ** 2) + 1 - ccc, rel=1e-4)


def test_the_scale_of_the_numbers_does_not_change_it():
    outputs, numbers = draw()
    scaled = losses(10 + 3 * outputs, 10 + 3 * numbers, mean=10.0, std=3.0)
    torch.testing.assert_close(scaled, losses(outputs, numbers), rtol=1e-4, atol=1e-5)


def test_a_clip_without_weight_does_not_count():
    outputs, numbers = draw()
    padded = [torch.cat([values, torch.full((2, 3), -100.0)], 1) for values in (outputs, numbers + 1)]
    weights = torch.cat([torch.ones(2, 40), torch.zeros(2, 3)], 1)
    torch.testing.assert_close(losses(*padded, weights), losses(outputs, numbers + 1), rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_clip_has_a_finite_gradient():
    outputs = torch.tensor([[0.5]], requires_grad=True)
    losses(outputs, torch.tensor([[0.5]])).sum().backward()
    assert torch.isfinite(outputs.grad).all()


def test_a_perfect_prediction_has_no_loss():
    _, numbers = draw()
    assert losses(numbers, numbers).abs().max() < 1e-4

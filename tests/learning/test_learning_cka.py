"""Linear CKA: its value, and that every device gives it."""

import numpy as np
import pytest
import torch
from fixtures.emulated_device import DEVICES, use_device

from mertool.learning.cka import linear_cka


def cka_by_gram_matrices(first, second):
    """CKA of the clips' Gram matrices (Kornblith et al., 2019, eq. 3 and 4), in NumPy."""
    scale = first.std(0, ddof=1)
    k, l = ((x - x.mean(0)) / scale @ ((x - x.mean(0)) / scale).T for x in (first, second))  # noqa: E741
    return (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())


@pytest.fixture
def features():
    """Hidden states have common offsets that are large beside what differs, which float32 would lose."""
    rng = np.random.default_rng(0)
    offset = 1e4 * rng.normal(size=12)
    first = (rng.normal(size=(40, 12)) + offset).astype(np.float32)
    second = (first + rng.normal(size=(40, 12))).astype(np.float32)
    return first, second


def test_the_value_is_that_of_gram_matrices(features):
    expected = cka_by_gram_matrices(*(values.astype(np.float64) for values in features))
    assert 0.2 < expected < 0.9
    assert linear_cka(*map(torch.from_numpy, features)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", DEVICES)
def test_every_device_gives_it(kind, features):
    expected = linear_cka(*map(torch.from_numpy, features))
    with use_device(kind) as device:
        assert linear_cka(*(torch.from_numpy(values).to(device) for values in features)) == pytest.approx(expected)


def test_equal_features_up_to_a_factor_and_a_shift():
    values = torch.from_numpy(np.random.default_rng(1).normal(size=(30, 5)))
    assert linear_cka(values, 3 * values + 7) == pytest.approx(1.0)

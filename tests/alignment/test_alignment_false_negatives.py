"""Which clips sound so alike that they are no negatives of each other."""

import numpy as np
import pytest
import torch

from mertool.alignment.false_negatives import FALSE_NEGATIVE_QUANTILE, FalseNegativeFilter
from mertool.options.align import FALSE_NEGATIVES

CAUSES = np.repeat(np.arange(4), 25)


@pytest.fixture(scope="module")
def anchors():
    """A hundred clips around four centres."""
    random = np.random.default_rng(0)
    return (random.normal(0, 1, (4, 12))[CAUSES] + 0.1 * random.normal(0, 1, (100, 12))).astype(np.float16)


@pytest.fixture(scope="module")
def find(anchors):
    def same(kind, rows):
        found = FalseNegativeFilter(kind, anchors, np.arange(80), 0)
        return found.same(rows, torch.from_numpy(anchors[rows]).float()).numpy()

    return same


@pytest.mark.parametrize("kind", FALSE_NEGATIVES)
def test_a_clip_is_always_its_own_positive(kind, find):
    same = find(kind, np.arange(100))
    assert not np.diagonal(same).any()
    np.testing.assert_array_equal(same, same.T)


def test_by_default_every_other_clip_is_a_negative(find):
    assert not find("none", np.arange(100)).any()


def test_the_threshold_takes_the_most_alike_pairs(find):
    same = find("threshold", np.arange(80))
    assert same.sum() / (80 * 79) == pytest.approx(FALSE_NEGATIVE_QUANTILE, abs=0.002)
    assert (CAUSES[:80, None] == CAUSES[:80])[same].all()


def test_pseudo_classes_are_clusters(find):
    rows = np.random.default_rng(1).permutation(100)
    same = find("pseudo-class", rows)
    assert same.sum() > 200
    assert (CAUSES[rows][:, None] == CAUSES[rows])[same].all()

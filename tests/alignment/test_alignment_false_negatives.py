"""False negatives: which pairs of clips have so similar audio that they are not pushed apart."""

import numpy as np
import pytest
import torch

from mertool.alignment.false_negatives import FALSE_NEGATIVE_QUANTILE, FalseNegativeFilter
from mertool.options.align import FALSE_NEGATIVES

CENTRES = np.repeat(np.arange(4), 25)


@pytest.fixture(scope="module")
def targets():
    """A hundred clips around four centres."""
    random = np.random.default_rng(0)
    return (random.normal(0, 1, (4, 12))[CENTRES] + 0.1 * random.normal(0, 1, (100, 12))).astype(np.float16)


@pytest.fixture(scope="module")
def make_mask(targets):
    def mask(kind, rows):
        fitted = FalseNegativeFilter.fit(kind, targets, train=np.arange(80), seed=0)
        return fitted.mask(rows, torch.from_numpy(targets[rows]).float()).numpy()

    return mask


@pytest.mark.parametrize("kind", FALSE_NEGATIVES)
def test_mask_is_symmetric_and_leaves_out_the_clip_itself(kind, make_mask):
    mask = make_mask(kind, np.arange(100))
    assert not np.diagonal(mask).any()
    np.testing.assert_array_equal(mask, mask.T)


def test_kind_none_has_no_false_negatives(make_mask):
    assert not make_mask("none", np.arange(100)).any()


def test_threshold_masks_the_most_similar_pairs(make_mask):
    mask = make_mask("threshold", np.arange(80))
    assert mask.sum() / (80 * 79) == pytest.approx(FALSE_NEGATIVE_QUANTILE, abs=0.002)
    assert (CENTRES[:80, None] == CENTRES[:80])[mask].all()


def test_pseudo_class_masks_pairs_of_one_cluster(make_mask):
    rows = np.random.default_rng(1).permutation(100)
    mask = make_mask("pseudo-class", rows)
    assert mask.sum() > 200
    assert (CENTRES[rows][:, None] == CENTRES[rows])[mask].all()

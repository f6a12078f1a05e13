"""Which unlabelled clips are pseudo-labelled."""

import numpy as np

from mertool.fusion.pseudo_labels import MIN_CONFIDENCE, UnimodalPredictions, select_pseudo_labels
from mertool.learning.labelled_clips import IGNORE_INDEX

CLASSES = 3
UNIFORM = np.full(CLASSES, 1 / CLASSES)


def logits_for(*classes, scale=5.0):
    """Logits (U, 3) that predict these classes."""
    return scale * np.eye(CLASSES)[list(classes)]


def select(fusion, votes=(), available=None, *, prior=UNIFORM, quota=100.0, confidence=0.8):
    available = [np.ones(len(fusion), bool)] * len(votes) if available is None else available
    predictions = [UnimodalPredictions(*pair) for pair in zip(votes, available, strict=True)]
    return select_pseudo_labels(fusion, predictions, prior=prior, quota=quota, confidence=confidence)


def test_a_clip_is_selected_where_most_modalities_agree_with_fusion():
    fusion = logits_for(0, 0, 0, 0)
    votes = [logits_for(0, 0, 0, 1), logits_for(0, 0, 1, 1), logits_for(0, 1, 1, 1)]
    assert select(fusion, votes).labels.tolist() == [0, 0, IGNORE_INDEX, IGNORE_INDEX]


def test_half_of_the_votes_is_no_majority():
    assert select(logits_for(0, 0), [logits_for(0, 0), logits_for(0, 1)]).labels.tolist() == [0, IGNORE_INDEX]


def test_absent_modalities_have_no_vote():
    fusion = logits_for(0, 0, 0)
    votes = [logits_for(0, 0, 0), logits_for(0, 0, 0), logits_for(1, 1, 1)]
    available = [np.ones(3, bool), np.array([True, False, False]), np.array([False, True, False])]
    # Two for it; one against one; a single vote, which is what fusion predicts anyway.
    assert select(fusion, votes, available).labels.tolist() == [0, IGNORE_INDEX, IGNORE_INDEX]


def test_a_single_modality_has_nothing_to_agree_with():
    assert select(logits_for(2, 1), [logits_for(2, 0)]).labels.tolist() == [2, 1]


def test_each_class_has_its_share_of_the_quota_for_its_most_confident_clips():
    fusion = np.concatenate([logits_for(0, 0, 0, 0, scale=4.0), logits_for(1, 1, scale=6.0)])
    fusion[2, 0] = 9.0
    selection = select(fusion, prior=np.array([0.25, 0.5, 0.25]), quota=4.0)
    assert selection.labels.tolist() == [IGNORE_INDEX, IGNORE_INDEX, 0, IGNORE_INDEX, 1, 1]
    assert selection.n_selected.tolist() == [1, 2, 0]
    assert selection.agreed.tolist() == [4, 2, 0]


def test_an_easy_class_does_not_crowd_out_a_hard_one():
    """A hundred clips of class 0 that fusion is confident of, ten of class 1 that it is less confident of."""
    fusion = np.concatenate([logits_for(*[0] * 100, scale=8.0), logits_for(*[1] * 10, scale=1.5)])
    assert select(fusion, quota=30.0).n_selected.tolist() == [10, 10, 0]


def test_a_class_that_fusion_is_seldom_confident_of_has_a_lower_threshold():
    fusion = np.concatenate(
        [logits_for(*[0] * 10, scale=8.0), logits_for(*[1] * 8, scale=8.0), logits_for(2, 2)],
    )
    thresholds = select(fusion, confidence=0.9).thresholds
    # FlexMatch: 0.9 x with x = effect / (2 - effect); effect 1, 0.8, 0.2, and never below one half.
    np.testing.assert_allclose(thresholds, [0.9, 0.9 * 0.8 / 1.2, MIN_CONFIDENCE])


def test_the_learning_effect_is_counted_against_the_prior():
    fusion = np.concatenate([logits_for(*[0] * 9, scale=8.0), logits_for(*[1] * 3, scale=8.0)])
    thresholds = select(fusion, prior=np.array([0.6, 0.2, 0.2]), confidence=0.9).thresholds
    np.testing.assert_allclose(thresholds[:2], 0.9)


def test_no_clip_is_selected_below_one_half():
    fusion = np.log(np.array([[0.45, 0.3, 0.25], [0.55, 0.25, 0.2]]))
    assert select(fusion).labels.tolist() == [IGNORE_INDEX, 0]


def test_nothing_may_be_selected():
    assert (select(np.zeros((4, 3))).labels == IGNORE_INDEX).all()
    assert select(np.zeros((0, 3))).labels.shape == (0,)

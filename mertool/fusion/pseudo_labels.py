"""Selection of pseudo-labels: clips on which the modalities agree, balanced over classes.

Sources: quotas by class, Zou et al. (CBST, 2018); thresholds by class, Zhang et al. (FlexMatch, 2021); agreement of
views, Blum and Mitchell (1998).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from mertool.learning.labelled_clips import IGNORE_INDEX

MIN_CONFIDENCE = 0.5  # of fusion in the class of a selected clip


@dataclass(frozen=True)
class UnimodalPredictions:
    """Logits (U, C) of a fold's unimodal members for unlabelled clips, and which clips have the modality, (U,)."""

    logits: np.ndarray
    available: np.ndarray


@dataclass(frozen=True)
class PseudoLabelSelection:
    """Pseudo-labels of one fold.

    Attributes:
        labels: (U,) with IGNORE_INDEX for clips that are not selected.
        agreed: Clips (C,) of each class on which the modalities agree.
        thresholds: Lowest confidence (C,) that was accepted for each class.
    """

    labels: np.ndarray
    agreed: np.ndarray
    thresholds: np.ndarray

    @property
    def n_selected(self) -> np.ndarray:
        """Selected clips (C,) of each class."""
        return np.bincount(self.labels[self.labels != IGNORE_INDEX], minlength=len(self.agreed))


def select_pseudo_labels(
    fusion: np.ndarray,
    votes: Sequence[UnimodalPredictions],
    *,
    prior: np.ndarray,
    quota: float,
    confidence: float,
) -> PseudoLabelSelection:
    """Return pseudo-labels for U clips.

    A clip is a candidate where at least two modalities are available and more than half of these predict the class that
    fusion predicts. Of class c at most quota * prior[c] clips are selected, the most confident ones, so that the class
    frequencies stay those of `prior` and an easy class does not crowd out another. The threshold of a class is lower
    the fewer of its clips fusion is confident of (FlexMatch, counted against the prior), but at least MIN_CONFIDENCE.

    Args:
        fusion: Logits (U, C) of the fusion.
        votes: Predictions of each unimodal ensemble for the same clips.
        prior: Class prior (C,) of the labelled clips.
        quota: Largest number of clips to select, over all classes.
        confidence: Threshold of the class that fusion is most often confident of.
    """
    probability = softmax(np.asarray(fusion, np.float64), axis=-1).max(1)
    predicted, classes = fusion.argmax(1), fusion.shape[1]
    agrees = _agreement(predicted, votes)
    confident = np.bincount(predicted[agrees & (probability >= confidence)], minlength=classes) / prior
    learning_effect = confident / max(confident.max(), 1e-12)
    thresholds = np.maximum(MIN_CONFIDENCE, confidence * learning_effect / (2 - learning_effect))
    labels = np.full(len(predicted), IGNORE_INDEX, np.int64)
    for index in range(classes):
        candidates = np.flatnonzero(agrees & (predicted == index) & (probability >= thresholds[index]))
        ranked = candidates[np.argsort(-probability[candidates], kind="stable")]
        labels[ranked[: int(quota * prior[index])]] = index
    return PseudoLabelSelection(labels, np.bincount(predicted[agrees], minlength=classes), thresholds)


def _agreement(predicted: np.ndarray, votes: Sequence[UnimodalPredictions]) -> np.ndarray:
    """Return (U,), true where more than half of the votes that a clip has are for the predicted class.

    One vote does not count: of a clip with one modality, fusion predicts what that modality predicts. With a single
    ensemble there is nothing to agree with, so all clips are candidates.
    """
    if len(votes) < 2:
        return np.ones(len(predicted), bool)
    available = np.stack([vote.available for vote in votes])
    agreeing = np.stack([vote.logits.argmax(1) == predicted for vote in votes]) & available
    return (2 * agreeing.sum(0) > available.sum(0)) & (available.sum(0) >= 2)

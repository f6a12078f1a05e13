"""Probes for the speaker: where folds share speakers, a probe of emotion could exploit what these probes find."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold

from mertool.probing.nested_cv import layer_chunks
from mertool.probing.progress import ProgressSpan
from mertool.probing.ridge import Ridge, class_targets

RIDGE_PENALTY_PER_CLIP = 0.1  # times the number of training clips; fixed, so that nothing is chosen on any clips


@dataclass(frozen=True, kw_only=True)
class SpeakerPredictions:
    """Cross-validated speaker classification of n clips from each of L layers.

    Attributes:
        rows: The clips (n,), those of speakers with at least two.
        speakers: Speaker index (n,).
        predicted: Speaker index (L, n) by probes that did not train on the clip.
        control_speakers: Randomly permuted speakers (n,), which measure chance.
        control_predicted: Predictions (L, n) of the permuted speakers.
    """

    rows: np.ndarray
    speakers: np.ndarray
    predicted: np.ndarray
    control_speakers: np.ndarray
    control_predicted: np.ndarray


def probe_speakers(
    values: np.ndarray,
    speakers: np.ndarray,
    *,
    n_folds: int,
    seed: int,
    device: torch.device,
    progress: ProgressSpan,
) -> SpeakerPredictions | None:
    """Probe features (N, L, D) for speakers (N,) by ridge regression, under folds stratified by speaker.

    Stratified folds have every speaker in training and in the held-out fold. Speakers with one clip are left out; the
    result is None if fewer than two speakers remain.
    """
    _, inverse, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[inverse] >= 2)
    names, speaker_index, counts = np.unique(speakers[rows], return_inverse=True, return_counts=True)
    if len(names) < 2:
        return None
    n_folds, n_speakers = min(n_folds, int(counts.max())), len(names)
    fold_of = _stratified_folds(speaker_index, n_folds, seed)
    control = np.random.default_rng(seed).permutation(speaker_index)
    predicted = np.zeros((2, values.shape[1], len(rows)), np.int64)
    # The control is more columns of the same system, so that both share one factorisation.
    targets = torch.cat(
        [class_targets(torch.as_tensor(index, device=device), n_speakers) for index in (speaker_index, control)], 1
    )
    chunks = layer_chunks(
        values.shape[1], _floats_per_layer(values.shape[2], len(rows), n_speakers=n_speakers, n_folds=n_folds), device
    )
    for number, layers in enumerate(chunks):
        features = torch.as_tensor(values[rows, layers], device=device).transpose(0, 1).contiguous()
        ridge = Ridge.from_features(features, targets, torch.as_tensor(fold_of, device=device), n_folds=n_folds)
        for fold in range(n_folds):
            held_out = np.flatnonzero(fold_of == fold)
            weights = ridge.solve([fold], [RIDGE_PENALTY_PER_CLIP * (len(rows) - len(held_out))])
            scores = ridge.scores(weights, torch.as_tensor(held_out, device=device))[:, 0]
            for index, columns in enumerate(scores.split(n_speakers, 1)):
                predicted[index, layers][:, held_out] = columns.argmax(1).cpu().numpy()
        progress(number + 1, len(chunks))
    return SpeakerPredictions(
        rows=rows,
        speakers=speaker_index,
        predicted=predicted[0],
        control_speakers=control,
        control_predicted=predicted[1],
    )


def _stratified_folds(speaker_index: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Return the fold (n,) of each clip."""
    fold_of = np.zeros(len(speaker_index), np.int64)
    with warnings.catch_warnings():
        # scikit-learn warns of a speaker with fewer clips than folds; corpora have such speakers.
        warnings.simplefilter("ignore", UserWarning)
        splits = list(StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(speaker_index, speaker_index))
    for fold, (_, held_out) in enumerate(splits):
        fold_of[held_out] = fold
    return fold_of


def _floats_per_layer(n_channels: int, n_clips: int, *, n_speakers: int, n_folds: int) -> int:
    """Return how many float32 numbers one layer needs: features, targets and a Gram matrix for each fold."""
    return n_clips * (3 * n_channels + 2 * n_speakers) + n_channels * (n_channels * (n_folds + 10) + 8 * n_speakers)

"""How well each layer tells the speakers apart: what a probe of emotion could lean on where folds share speakers."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold

from mertool.probing.nested_cv import layer_chunks
from mertool.probing.ridge import Ridge, class_targets

SHARE = 0.1  # the ridge penalty as a share of the training clips; fixed, so nothing is chosen


@dataclass(frozen=True)
class SpeakerReadout:
    """Speaker index (n,) of the clips in `rows` and its guess (L, n) by probes that did not train on the clip.

    `control` (L, n) guesses `shuffled` (n,) speakers.
    """

    rows: np.ndarray
    truth: np.ndarray
    guess: np.ndarray
    shuffled: np.ndarray
    control: np.ndarray


def probe_speakers(
    values: np.ndarray,
    speakers: np.ndarray,
    folds: int,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> SpeakerReadout | None:
    """Ridge probes of values (N, L, D) for speakers (N,), under folds stratified by speaker: each is on both sides.

    Speakers with one clip are left out; None where fewer than two have more.
    """
    names, of, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[of] >= 2)
    if len(np.unique(of[rows])) < 2:
        return None
    names, truth, counts = np.unique(speakers[rows], return_inverse=True, return_counts=True)
    folds = min(folds, int(counts.max()))
    fold_of = np.zeros(len(rows), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a speaker with fewer clips than folds is not in every fold
        splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, truth))
    for fold, (_, held_out) in enumerate(splits):
        fold_of[held_out] = fold
    shuffled = np.random.default_rng(seed).permutation(truth)
    guess = np.zeros((2, values.shape[1], len(rows)), np.int64)
    known = [torch.as_tensor(given, device=device) for given in (truth, shuffled)]
    targets = torch.cat([class_targets(given, len(names)) for given in known], 1)
    channels = values.shape[2]
    numbers = len(rows) * (3 * channels + 2 * len(names)) + channels * (channels * (folds + 10) + 8 * len(names))
    chunks = layer_chunks(values.shape[1], numbers, device)
    for number, chunk in enumerate(chunks):
        features = torch.as_tensor(values[rows, chunk], device=device).transpose(0, 1).contiguous()
        ridge = Ridge(features, targets, torch.as_tensor(fold_of, device=device), folds)
        for fold in range(folds):
            here = np.flatnonzero(fold_of == fold)
            weights = ridge.solve([fold], [SHARE * (len(rows) - len(here))])
            scores = ridge.scores(weights, torch.as_tensor(here, device=device))[:, 0]
            for half, part in enumerate(scores.split(len(names), 1)):
                guess[half, chunk][:, here] = part.argmax(1).cpu().numpy()
        progress(number + 1, len(chunks))
    return SpeakerReadout(rows, truth, guess[0], shuffled, guess[1])

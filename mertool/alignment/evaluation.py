"""Scores of an aligner on held-out clips: retrieval, similarity of the two spaces, and the gain of a linear probe."""

from typing import Any

import numpy as np
import torch

from mertool.devices import precise_device
from mertool.errors import MertoolError
from mertool.learning.cka import linear_cka
from mertool.learning.folds import Folds, make_folds, speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.metrics import Interval, paired_bootstrap, score_json
from mertool.probing.linear import cross_validate

BOOTSTRAP_DRAWS = 2000
DRAWS_PER_CHUNK = 200
RECALL_AT = (1, 5, 10)
DIRECTIONS = ("video_to_audio", "audio_to_video")
CKA_SHUFFLES = 20
MAX_PROBE_FOLDS = 5


def evaluate_alignment(visual: torch.Tensor, acoustic: torch.Tensor, seed: int) -> dict[str, Any]:
    """Return all scores of vectors (N, A) and (N, A) of the same held-out clips, as metrics.json holds them."""
    random = np.random.default_rng(seed)
    unit_acoustic, unit_visual = _normalize(acoustic), _normalize(visual)
    shuffled = [linear_cka(unit_acoustic, unit_visual[random.permutation(len(visual))]) for _ in range(CKA_SHUFFLES)]
    return {
        **retrieval_scores(visual.cpu().numpy(), acoustic.cpu().numpy(), seed),
        # With fewer clips than channels, CKA is high for unrelated features, too; that of shuffled pairs says how high.
        "cka": {"value": linear_cka(unit_acoustic, unit_visual), "shuffled": float(np.mean(shuffled))},
        "alignment": alignment_distance(visual, acoustic),
        "uniformity": {"video": uniformity(visual), "audio": uniformity(acoustic)},
    }


def retrieval_scores(visual: np.ndarray, acoustic: np.ndarray, seed: int) -> dict[str, Any]:
    """Return recall and median rank of the same clip by cosine, in both directions, with those of chance.

    Intervals (95 %) are bootstrapped over queries; the clips that are searched stay the same. A clip with the same
    cosine as the right one counts half, so that vectors that are all equal score as chance.
    """
    unit_visual, unit_acoustic = (
        vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) for vectors in (visual, acoustic)
    )
    similarities = unit_visual @ unit_acoustic.T
    n_clips = len(visual)
    scores: dict[str, Any] = {"clips": n_clips}
    for direction, matrix in zip(DIRECTIONS, (similarities, similarities.T), strict=True):
        same_clip = np.diagonal(matrix)[:, None]
        ranks = 1 + (matrix > same_clip).sum(1) + ((matrix == same_clip).sum(1) - 1) / 2
        scores[direction] = _bootstrap_rank_scores(ranks, seed)
    scores["chance"] = {f"recall@{k}": min(1.0, k / n_clips) for k in RECALL_AT}
    scores["chance"]["median_rank"] = (n_clips + 1) / 2
    return scores


def alignment_distance(visual: torch.Tensor, acoustic: torch.Tensor) -> float:
    """Return the "alignment" of Wang and Isola (2020): the mean squared distance of the unit vectors of a clip.

    0 means equal, 2 unrelated.
    """
    return float((_normalize(visual) - _normalize(acoustic)).square().sum(1).mean())


def uniformity(vectors: torch.Tensor) -> float:
    """Return the "uniformity" of Wang and Isola (2020): the log of the mean of exp(-2 d^2) over pairs of unit vectors.

    0 means a single point, about -4 spread evenly over the sphere.
    """
    return float(torch.pdist(_normalize(vectors)).square().mul(-2).exp().mean().log())


def probe_folds(examples: LabelledClips, seed: int) -> Folds:
    """Make as many folds for the probe as the labelled clips allow, at most MAX_PROBE_FOLDS.

    Raises MertoolError if they do not allow two.
    """
    # make_folds refuses folds that leave one class to train on; fewer folds may be possible.
    for count in range(MAX_PROBE_FOLDS, 1, -1):
        try:
            return make_folds(examples, count, seed)
        except MertoolError:
            continue
    raise MertoolError(
        f"--manifest: {len(examples)} labelled clips with frames cannot be split into two folds of two classes or "
        "more: label more clips, or leave out --manifest"
    )


def probe_gain(
    unaligned: np.ndarray,
    aligned: np.ndarray,
    examples: LabelledClips,
    *,
    folds: Folds,
    classes: int,
    seed: int,
) -> dict[str, Any]:
    """Compare linear probes on the mean of the frames (N, C) and on the aligned vectors (N, A) under cross-validation.

    The aligner may have been trained on these clips, but never on a label. If the acoustic targets are those of
    adapters, the target of a labelled clip is by the adapter that was not trained on its label.
    """
    truth, groups = examples.labels, speaker_groups(examples)
    without_alignment, with_alignment = (
        cross_validate(features, truth, folds.fold_of, n_classes=classes, device=torch.device("cpu")).argmax(1)
        for features in (unaligned, aligned)
    )
    return {
        "clips": len(truth),
        "folds": folds.description,
        "interval": "clips" if groups is None else "speakers",
        "unaligned": score_json(truth, without_alignment, classes, seed=seed, groups=groups),
        "aligned": score_json(truth, with_alignment, classes, seed=seed, groups=groups),
        "gain": paired_bootstrap(truth, without_alignment, with_alignment, classes=classes, seed=seed, groups=groups),
    }


def _normalize(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors.to(precise_device(vectors.device)).double(), dim=1)


def _bootstrap_rank_scores(ranks: np.ndarray, seed: int) -> dict[str, Any]:
    """Return recalls and median of ranks (N,) with their intervals."""
    random = np.random.default_rng(seed)
    draws = []
    # In chunks, because all draws of 2,000 ranks take 32 MB in every intermediate array.
    for _ in range(0, BOOTSTRAP_DRAWS, DRAWS_PER_CHUNK):
        drawn_ranks = ranks[random.integers(0, len(ranks), (DRAWS_PER_CHUNK, len(ranks)))]
        draws.append(_rank_scores(drawn_ranks))
    lows, highs = np.quantile(np.concatenate(draws, 1), [0.025, 0.975], axis=1)
    values = _rank_scores(ranks[None])[:, 0]
    names = [*(f"recall@{k}" for k in RECALL_AT), "median_rank"]
    return {
        name: Interval(float(value), float(low), float(high)).to_json()
        for name, value, low, high in zip(names, values, lows, highs, strict=True)
    }


def _rank_scores(ranks: np.ndarray) -> np.ndarray:
    """Return recalls and median (4, draws) of ranks (draws, N)."""
    return np.stack([*((ranks <= k).mean(1) for k in RECALL_AT), np.median(ranks, 1)])

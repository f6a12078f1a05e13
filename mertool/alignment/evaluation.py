"""Scores of an aligner on held-out clips: retrieval, similarity of the two spaces, and the gain of a linear probe."""

from typing import Any

import numpy as np
import torch

from mertool.devices import precise_device
from mertool.errors import MertoolError
from mertool.learning.cka import linear_cka
from mertool.learning.folds import Folds, make_folds, speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.probing.linear import cross_validate
from mertool.sampling_units import Units
from mertool.significance import paired_test, score_json

RECALL_AT = (1, 5, 10)
DIRECTIONS = ("video_to_audio", "audio_to_video")
CKA_SHUFFLES = 20
MAX_PROBE_FOLDS = 5


def evaluate_alignment(
    visual: torch.Tensor, acoustic: torch.Tensor, *, seed: int, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """Return all scores of vectors (N, A) and (N, A) of the same held-out clips, as metrics.json holds them.

    Intervals are over clips, or over the speakers `groups` (N,). `seed` is that of the shuffled pairs of CKA.
    """
    random = np.random.default_rng(seed)
    unit_acoustic, unit_visual = _normalize(acoustic), _normalize(visual)
    shuffled = [linear_cka(unit_acoustic, unit_visual[random.permutation(len(visual))]) for _ in range(CKA_SHUFFLES)]
    return {
        **retrieval_scores(visual.cpu().numpy(), acoustic.cpu().numpy(), groups),
        # With fewer clips than channels, CKA is high for unrelated features, too; that of shuffled pairs says how high.
        "cka": {"value": linear_cka(unit_acoustic, unit_visual), "shuffled": float(np.mean(shuffled))},
        "alignment": alignment_distance(visual, acoustic),
        "uniformity": {"video": uniformity(visual), "audio": uniformity(acoustic)},
    }


def retrieval_scores(visual: np.ndarray, acoustic: np.ndarray, groups: np.ndarray | None = None) -> dict[str, Any]:
    """Return recall and median rank of the same clip by cosine, in both directions, with those of chance.

    Intervals (95 %) of the recalls are over queries, or over the speakers `groups` (N,) of them; the clips that are
    searched stay the same. A clip with the same cosine as the right one counts half, so that vectors that are all equal
    score as chance.
    """
    unit_visual, unit_acoustic = (
        vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) for vectors in (visual, acoustic)
    )
    similarities = unit_visual @ unit_acoustic.T
    n_clips = len(visual)
    scores: dict[str, Any] = {"clips": n_clips, "interval": "clips" if groups is None else "speakers"}
    for direction, matrix in zip(DIRECTIONS, (similarities, similarities.T), strict=True):
        same_clip = np.diagonal(matrix)[:, None]
        ranks = 1 + (matrix > same_clip).sum(1) + ((matrix == same_clip).sum(1) - 1) / 2
        scores[direction] = _rank_scores(ranks, groups)
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
) -> dict[str, Any]:
    """Compare linear probes on the mean of the frames (N, C) and on the aligned vectors (N, A) under cross-validation.

    The aligned vector of a clip is by an aligner that was not trained on the clip (`cross_fitting`). If the acoustic
    targets are those of adapters, the target of a labelled clip is by the adapter that was not trained on its label.
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
        "unaligned": score_json(truth, without_alignment, classes, groups=groups),
        "aligned": score_json(truth, with_alignment, classes, groups=groups),
        "gain": paired_test(truth, without_alignment, with_alignment, n_classes=classes, groups=groups),
    }


def _normalize(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors.to(precise_device(vectors.device)).double(), dim=1)


def _rank_scores(ranks: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """Return recalls of ranks (N,) with their intervals, and the median rank, which has none."""
    units = Units.count(np.searchsorted(RECALL_AT, ranks)[None], len(RECALL_AT) + 1, groups)

    def recalls(counts: np.ndarray) -> np.ndarray:
        cumulative = counts[..., 0, :].cumsum(-1)
        return cumulative[..., :-1] / cumulative[..., -1:]

    intervals = units.score_intervals(recalls)
    scores = {f"recall@{k}": interval.to_json() for k, interval in zip(RECALL_AT, intervals, strict=True)}
    # No interval: the jackknife does not hold for medians.
    return {**scores, "median_rank": float(np.median(ranks))}

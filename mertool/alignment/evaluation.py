"""What an aligner is worth on clips it never saw: finding the own sound, likeness of the spaces, a linear probe."""

from typing import Any

import numpy as np
import torch

from mertool.errors import MertoolError
from mertool.learning.cka import linear_cka
from mertool.learning.folds import Folds, make_folds, speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.metrics import Interval, paired_bootstrap, score_json
from mertool.probing.linear import cross_validate

DRAWS = 2000
DRAWN_AT_ONCE = 200
RECALLS = (1, 5, 10)
WAYS = ("video_to_audio", "audio_to_video")
SHUFFLES = 20
FOLDS = 5


def validate(visual: torch.Tensor, acoustic: torch.Tensor, seed: int) -> dict[str, Any]:
    """All scores of matched rows (N, A) of held-out clips, as metrics.json holds them."""
    random = np.random.default_rng(seed)
    a, b = _unit(acoustic), _unit(visual)
    shuffled = [linear_cka(a, b[random.permutation(len(b))]) for _ in range(SHUFFLES)]
    return {
        **retrieval(visual.numpy(), acoustic.numpy(), seed),
        # With fewer clips than channels unrelated features are alike, too; shuffled pairs say how much.
        "cka": {"value": linear_cka(a, b), "shuffled": float(np.mean(shuffled))},
        "alignment": alignment(visual, acoustic),
        "uniformity": {"video": uniformity(visual), "audio": uniformity(acoustic)},
    }


def retrieval(visual: np.ndarray, acoustic: np.ndarray, seed: int) -> dict[str, Any]:
    """Recall and median rank of the own clip by cosine both ways, and of chance, for matched rows (N, A).

    Intervals are over queries, the clips that are searched stay. Clips as near as the own one count half, so that
    vectors that are all alike are worth as much as chance.
    """
    a, b = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (visual, acoustic))
    similar = a @ b.T
    scores: dict[str, Any] = {"clips": len(a)}
    for way, matrix in zip(WAYS, (similar, similar.T), strict=True):
        own = np.diagonal(matrix)[:, None]
        rank = 1 + (matrix > own).sum(1) + ((matrix == own).sum(1) - 1) / 2
        scores[way] = _ranked(rank, seed)
    scores["chance"] = {f"recall@{most}": min(1.0, most / len(a)) for most in RECALLS}
    scores["chance"]["median_rank"] = (len(a) + 1) / 2
    return scores


def alignment(visual: torch.Tensor, acoustic: torch.Tensor) -> float:
    """Mean squared distance of matched unit vectors (Wang and Isola, 2020): 0 is the same, 2 unrelated."""
    return float((_unit(visual) - _unit(acoustic)).square().sum(1).mean())


def uniformity(vectors: torch.Tensor) -> float:
    """Log of the mean of exp(-2 d^2) over pairs of unit vectors (ibid.): 0 is one point, about -4 spread evenly."""
    return float(torch.pdist(_unit(vectors)).square().mul(-2).exp().mean().log())


def probe_folds(examples: LabelledClips, seed: int) -> Folds:
    """As many folds for the probe as the labelled clips allow, at most FOLDS."""
    for count in range(FOLDS, 1, -1):
        try:
            return make_folds(examples, count, seed)
        except MertoolError:
            continue
    raise MertoolError(
        f"--manifest: {len(examples)} labelled clips with frames do not part into two folds of two classes or more: "
        "label more clips, or leave out --manifest"
    )


def probe_gain(
    unaligned: np.ndarray, aligned: np.ndarray, examples: LabelledClips, folds: Folds, classes: int, seed: int
) -> dict[str, Any]:
    """Cross-validated linear probes on the mean of the frames (N, C) and on the aligned vectors (N, A).

    The aligner may have seen these clips, but never a label; what an adapted acoustic store has of a labelled clip is
    by the adapter that did not see its label.
    """
    truth, groups, device = examples.labels, speaker_groups(examples), torch.device("cpu")
    first, second = (
        cross_validate(values, truth, folds.fold_of, classes, device).argmax(1) for values in (unaligned, aligned)
    )
    return {
        "clips": len(truth),
        "folds": folds.description,
        "interval": "clips" if groups is None else "speakers",
        "unaligned": score_json(truth, first, classes, seed=seed, groups=groups),
        "aligned": score_json(truth, second, classes, seed=seed, groups=groups),
        "gain": paired_bootstrap(truth, first, second, classes=classes, seed=seed, groups=groups),
    }


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors.double(), dim=1)


def _ranked(rank: np.ndarray, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    names = [f"recall@{most}" for most in RECALLS] + ["median_rank"]
    drawn = []
    for _ in range(0, DRAWS, DRAWN_AT_ONCE):
        ranks = rank[random.integers(0, len(rank), (DRAWN_AT_ONCE, len(rank)))]
        drawn.append(_scores(ranks))
    low, high = np.quantile(np.concatenate(drawn, 1), [0.025, 0.975], axis=1)
    values = _scores(rank[None])[:, 0]
    return {
        name: Interval(float(value), float(down), float(up)).to_json()
        for name, value, down, up in zip(names, values, low, high, strict=True)
    }


def _scores(ranks: np.ndarray) -> np.ndarray:
    """Recalls and median (4, draws) of ranks (draws, N)."""
    return np.stack([*((ranks <= most).mean(1) for most in RECALLS), np.median(ranks, 1)])

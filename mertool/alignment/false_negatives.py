"""False negatives: pairs of different clips that a contrastive loss should not push apart.

About a fifth of the pairs of a random batch share their emotion, and pushing those apart works against what the
features are for. Labels are not used; the acoustic targets tell which clips are similar.

- `threshold`: pairs whose cosine similarity is among the top FALSE_NEGATIVE_QUANTILE of all pairs (false negative
  cancellation, Huynh et al., 2022).
- `pseudo-class`: pairs in one k-means cluster of the targets; the number of clusters is the root of that of the clips.
- `none`: every other clip is a negative.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mertool.alignment.losses._cosine import cosine_matrix

FALSE_NEGATIVE_QUANTILE = 0.05
MAX_THRESHOLD_CLIPS = 2048  # all pairs of so many clips estimate the threshold
MAX_CLUSTERS = 512
MAX_CLUSTERED_CLIPS = 50_000  # k-means is fitted on, and assigns, so many clips at once


@dataclass(frozen=True, kw_only=True)
class FalseNegativeFilter:
    """Finds the false negatives among the pairs of a batch.

    Attributes:
        kind: `none`, `threshold` or `pseudo-class`.
        threshold: Cosine above which a pair is a false negative.
        clusters: Cluster (N,) of every clip; two of the same are false negatives.
    """

    kind: str
    threshold: float | None = None
    clusters: np.ndarray | None = None

    @classmethod
    def fit(cls, kind: str, targets: np.ndarray, *, train: np.ndarray, seed: int) -> "FalseNegativeFilter":
        """Estimate the threshold, or the clusters, from the acoustic targets (N, A) of the rows `train`."""
        order = np.random.default_rng(seed).permutation(train)
        if kind == "threshold":
            return cls(kind=kind, threshold=_similarity_threshold(targets[order[:MAX_THRESHOLD_CLIPS]]))
        if kind == "pseudo-class":
            n_clusters = min(MAX_CLUSTERS, max(2, round(len(train) ** 0.5)))
            sample = targets[order[:MAX_CLUSTERED_CLIPS]]
            return cls(kind=kind, clusters=_cluster(targets, sample, n_clusters, seed=seed))
        return cls(kind=kind)

    def mask(self, rows: np.ndarray, acoustic: torch.Tensor) -> torch.Tensor:
        """Return (B, B), true for false negatives: pairs of different clips `rows` (B,) with targets (B, A)."""
        mask = torch.zeros(len(rows), len(rows), dtype=torch.bool, device=acoustic.device)
        if self.threshold is not None:
            mask = cosine_matrix(acoustic, acoustic) > self.threshold
        elif self.clusters is not None:
            clusters = torch.from_numpy(self.clusters[rows]).to(acoustic.device)
            mask = clusters[:, None] == clusters
        return mask & ~torch.eye(len(rows), dtype=torch.bool, device=acoustic.device)

    def to_json(self) -> dict[str, Any]:
        """Return what was estimated, as metrics.json holds it."""
        classes = None if self.clusters is None else int(self.clusters.max()) + 1
        return {"kind": self.kind, "threshold": self.threshold, "classes": classes}


def _similarity_threshold(targets: np.ndarray) -> float:
    """Return the cosine that only FALSE_NEGATIVE_QUANTILE of all pairs exceed."""
    sample = torch.from_numpy(targets.astype(np.float32))
    similarities = cosine_matrix(sample, sample)[~torch.eye(len(sample), dtype=torch.bool)]
    return float(np.quantile(similarities.numpy(), 1 - FALSE_NEGATIVE_QUANTILE))


def _cluster(targets: np.ndarray, sample: np.ndarray, n_clusters: int, *, seed: int) -> np.ndarray:
    """Return the k-means cluster (N,) of every clip, by cosine, fitted on a sample."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.preprocessing import normalize

    kmeans = MiniBatchKMeans(n_clusters, batch_size=4096, n_init=3, random_state=seed)
    # Of unit vectors the Euclidean distance of k-means orders like the cosine.
    kmeans.fit(normalize(sample.astype(np.float32)))
    chunks = np.array_split(targets, -(-len(targets) // MAX_CLUSTERED_CLIPS))
    return np.concatenate([kmeans.predict(normalize(chunk.astype(np.float32))) for chunk in chunks]).astype(np.int64)

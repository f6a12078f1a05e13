"""Clips that sound like another one are no good negatives of it: which pairs of a batch to leave out.

About a fifth of the pairs of a random batch share their emotion, and a loss that pushes those apart works against
what the features are for. Labels are not read; the acoustic vectors tell which clips are alike.

- `threshold`: pairs whose acoustic cosine is among the top ALIKE of all pairs (false negative cancellation,
  Huynh et al., 2022).
- `pseudo-class`: pairs of one k-means cluster of the acoustic vectors, as many clusters as the root of the clips.
- `none`: every other clip is a negative.
"""

from typing import Any

import numpy as np
import torch

from mertool.alignment.losses._similar import cosines

FALSE_NEGATIVE_QUANTILE = 0.05
MOST_PAIRED = 2048  # clips whose pairs tell the threshold
MOST_CLASSES = 512
MOST_CLUSTERED = 50_000  # clips that k-means is fitted on


class FalseNegativeFilter:
    """Of clips with `anchors` (N, A); what is fitted is fitted on the rows `train`."""

    def __init__(self, kind: str, anchors: np.ndarray, train: np.ndarray, seed: int):
        self.kind = kind
        self.threshold: float | None = None
        self.classes: np.ndarray | None = None
        random = np.random.default_rng(seed)
        if kind == "threshold":
            some = torch.from_numpy(anchors[random.permutation(train)[:MOST_PAIRED]].astype(np.float32))
            similar = cosines(some, some)[~torch.eye(len(some), dtype=torch.bool)]
            self.threshold = float(np.quantile(similar.numpy(), 1 - FALSE_NEGATIVE_QUANTILE))
        elif kind == "pseudo-class":
            self.classes = _cluster(anchors, random.permutation(train)[:MOST_CLUSTERED], len(train), seed)

    def same(self, rows: np.ndarray, acoustic: torch.Tensor) -> torch.Tensor:
        """(B, B), true for pairs of different clips `rows`, with vectors (B, A), that are no negatives."""
        found = torch.zeros(len(rows), len(rows), dtype=torch.bool, device=acoustic.device)
        if self.threshold is not None:
            found = cosines(acoustic, acoustic) > self.threshold
        elif self.classes is not None:
            classes = torch.from_numpy(self.classes[rows]).to(acoustic.device)
            found = classes[:, None] == classes
        return found & ~torch.eye(len(rows), dtype=torch.bool, device=acoustic.device)

    def to_json(self) -> dict[str, Any]:
        """What was fitted."""
        classes = None if self.classes is None else int(self.classes.max()) + 1
        return {"kind": self.kind, "threshold": self.threshold, "classes": classes}


def _cluster(anchors: np.ndarray, fitted: np.ndarray, clips: int, seed: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.preprocessing import normalize

    count = min(MOST_CLASSES, max(2, round(clips**0.5)))
    kmeans = MiniBatchKMeans(count, batch_size=4096, n_init=3, random_state=seed)
    kmeans.fit(normalize(anchors[fitted].astype(np.float32)))
    parts = np.array_split(anchors, -(-len(anchors) // MOST_CLUSTERED))
    return np.concatenate([kmeans.predict(normalize(part.astype(np.float32))) for part in parts]).astype(np.int64)

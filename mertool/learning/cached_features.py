"""What fusion heads see of stores: one array (N, L, D) per store, and which clips have it.

A pooled store gives what it holds. A frame store gives S spans: the T frames of a clip parted into S equal spans, each
the mean of its frames (adaptive average pooling: span i covers the frames from i T / S, rounded down, to (i + 1) T / S,
rounded up, so a clip of fewer frames repeats them). So every clip has the same shape and frames need no mask.
"""

from collections.abc import Sequence

import numpy as np

from mertool.errors import MertoolError
from mertool.store import FeatureStore

SPANS = 16


def shape_of(store: FeatureStore) -> tuple[int, int]:
    """(L, D) of a store's features as heads see them; a store that cannot be fused is an error."""
    if store.recipe.modality == "faces":
        raise MertoolError(f"{store.path} holds face crops: give features of them (`mertool extract video`)")
    if store.pooled:
        return len(store.layers), store.channels
    if len(store.layers) > 1:
        raise MertoolError(
            f"{store.path} holds frames of {len(store.layers)} layers, of frames one is taken: extract one layer "
            "(--layers last), or pool (--pool mean)"
        )
    return SPANS, store.channels


def spans_of(store: FeatureStore) -> int | None:
    """Number of spans that frames are read as; None for a pooled store."""
    return None if store.pooled else SPANS


def gather(stores: Sequence[FeatureStore], clips: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
    """Features, one (N, L, D) float32 per store in the order of `clips`, and which are there, (N, M) bool.

    Zeros stand where a store has no features of a clip; NaN and infinity are an error. What a clip's row holds does
    not depend on the other clips.
    """
    present = np.array([[clip in store.index for store in stores] for clip in clips], bool)
    present = present.reshape(len(clips), len(stores))
    features = []
    for store, here in zip(stores, present.T, strict=True):
        values = np.zeros((len(clips), *shape_of(store)), np.float32)
        found = np.flatnonzero(here).tolist()
        if store.pooled and found:
            values[found] = store.read([clips[row] for row in found])
        else:
            # In the order of the file, so that the disk is read from one end to the other.
            for row in sorted(found, key=lambda row: store.index[clips[row]]):
                values[row] = to_spans(store.frames(clips[row]))
        _check_finite(store, values, clips)
        features.append(values)
    return features, present


def to_spans(frames: np.ndarray, spans: int = SPANS) -> np.ndarray:
    """Frames (T, D) as (spans, D) float32, each span the mean of its frames.

    >>> to_spans(np.array([[0.0], [2.0], [4.0], [6.0]]), 2).tolist()
    [[1.0], [5.0]]
    """
    count = len(frames)
    edges = np.arange(spans + 1) * count
    starts, ends = edges[:-1] // spans, -(-edges[1:] // spans)
    # Sums in double precision: differences of long running sums in single would lose digits.
    running = np.concatenate([np.zeros((1, frames.shape[1])), np.cumsum(frames, axis=0, dtype=np.float64)])
    return ((running[ends] - running[starts]) / (ends - starts)[:, None]).astype(np.float32)


def _check_finite(store: FeatureStore, values: np.ndarray, clips: Sequence[str]) -> None:
    wrong = np.flatnonzero(~np.isfinite(values).all((1, 2))).tolist()
    if wrong:
        raise MertoolError(
            f"{store.path} holds NaN or infinity (first in clip '{clips[wrong[0]]}'): see `mertool store check`, and "
            "extract it again"
        )

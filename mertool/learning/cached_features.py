"""Features of several stores as arrays in memory, as fusion heads take them.

A pooled store gives its layers. The T frames of a clip in a frame store are reduced to SPANS means by adaptive average
pooling, so that every clip has the same shape and needs no mask; a clip of fewer frames repeats them.
"""

from collections.abc import Sequence

import numpy as np
import torch

from mertool.errors import MertoolError
from mertool.store import FeatureStore

SPANS = 16


def feature_shape(store: FeatureStore) -> tuple[int, int]:
    """Return (L, D) of the features of a clip.

    Raises MertoolError for a store that cannot be fused: face crops, or frames of several layers.
    """
    if store.recipe.modality == "faces":
        raise MertoolError(f"{store.path} holds face crops: give features of them (`mertool extract video`)")
    if store.pooled:
        return len(store.layers), store.channels
    if len(store.layers) > 1:
        raise MertoolError(
            f"{store.path} holds frames of {len(store.layers)} layers, only one can be used: extract one layer "
            "(--layers last), or pool (--pool mean)"
        )
    return SPANS, store.channels


def span_count(store: FeatureStore) -> int | None:
    """Return the number of means that the frames of a clip are reduced to; None for a pooled store."""
    return None if store.pooled else SPANS


def load_features(stores: Sequence[FeatureStore], clips: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the features of `clips`, one (N, L, D) float32 per store, and a mask (N, M) of those that are present.

    Absent features are zeros. The row of a clip does not depend on the other clips. Raises MertoolError for a store
    that cannot be fused, and for NaN or infinity.
    """
    present = np.array([[clip in store.index for store in stores] for clip in clips], bool)
    present = present.reshape(len(clips), len(stores))  # of no clips, too
    features = []
    for store, mask in zip(stores, present.T, strict=True):
        values = np.zeros((len(clips), *feature_shape(store)), np.float32)
        rows = np.flatnonzero(mask).tolist()
        if store.pooled and rows:
            values[rows] = store.read([clips[row] for row in rows])
        else:
            # In the order of the file: on a disk, reading from one end to the other is fastest.
            for row in sorted(rows, key=lambda row: store.index[clips[row]]):
                values[row] = _pool_frames(store.frames(clips[row]))
        _check_finite(store, values, clips)
        features.append(values)
    return features, present


def _pool_frames(frames: np.ndarray) -> np.ndarray:
    """Reduce frames (T, D) to (SPANS, D) float32."""
    channels_first = torch.from_numpy(frames.astype(np.float64).T[None])
    return torch.nn.functional.adaptive_avg_pool1d(channels_first, SPANS)[0].T.float().numpy()


def _check_finite(store: FeatureStore, values: np.ndarray, clips: Sequence[str]) -> None:
    rows = np.flatnonzero(~np.isfinite(values).all((1, 2))).tolist()
    if rows:
        raise MertoolError(
            f"{store.path} holds NaN or infinity (first in clip '{clips[rows[0]]}'): see `mertool store check`, and "
            "extract it again"
        )

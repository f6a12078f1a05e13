"""Scores of clips by a bundle, from stores of their features."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mertool.bundle.reader import Bundle
from mertool.errors import MertoolError
from mertool.learning.cached_features import load_features
from mertool.store import FeatureStore

CLIPS_PER_BLOCK = 1024  # bounds the memory of the features


def score_blocks(
    bundle: Bundle,
    stores: Sequence[FeatureStore],
    clips: Sequence[str],
    *,
    device: torch.device,
    without: str | None = None,
) -> Iterator[tuple[list[str], torch.Tensor, np.ndarray]]:
    """Yield blocks of the clips that have any features: ids (n,), logits (n, C) on the CPU, present (n, stores).

    stores: one per feature spec of the bundle. without: a modality whose features count as absent.
    """
    used = [spec.modality != without for spec in bundle.feature_specs]
    used_stores = [store for store, use in zip(stores, used, strict=True) if use]
    scorable = [clip for clip in clips if any(clip in store.index for store in used_stores)]
    for start in range(0, len(scorable), CLIPS_PER_BLOCK):
        block = scorable[start : start + CLIPS_PER_BLOCK]
        features, present = _load_block(bundle, stores, block, used=used)
        logits = bundle.logits(
            [torch.from_numpy(values).to(device) for values in features], torch.from_numpy(present).to(device)
        )
        yield block, logits.float().cpu(), present


def _load_block(
    bundle: Bundle, stores: Sequence[FeatureStore], clips: list[str], *, used: Sequence[bool]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Features (n, L, D) of each store, zeros where a clip has none, and present (n, stores)."""
    features, present = [], np.zeros((len(clips), len(stores)), bool)
    for column, (store, shape, use) in enumerate(zip(stores, bundle.shapes, used, strict=True)):
        values = np.zeros((len(clips), *shape), np.float32)
        if use and len(store):  # a store without any features does not even know their shape
            (values,), store_has = load_features([store], clips)
            if values.shape[1:] != shape:
                raise MertoolError(
                    f"{store.path} has features of shape {values.shape[1:]}, {bundle.run.folder} takes {shape}: "
                    "remove the file, and run `mertool predict` again"
                )
            present[:, column] = store_has[:, 0]
        features.append(values)
    return features, present

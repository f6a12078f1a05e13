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
    device: torch.device,
    *,
    without: str | None = None,
) -> Iterator[tuple[list[str], torch.Tensor, np.ndarray]]:
    """Yield blocks of the clips that have at least one part: ids (n,), logits (n, C) on the CPU, present (n, parts).

    stores: one per part of the bundle. without: a modality whose parts count as absent.
    """
    used = [part.modality != without for part in bundle.parts]
    used_stores = [store for store, use in zip(stores, used, strict=True) if use]
    scorable = [clip for clip in clips if any(clip in store.index for store in used_stores)]
    for start in range(0, len(scorable), CLIPS_PER_BLOCK):
        block = scorable[start : start + CLIPS_PER_BLOCK]
        features, present = _load_block(bundle, stores, used, block)
        logits = bundle.logits(
            [torch.from_numpy(values).to(device) for values in features], torch.from_numpy(present).to(device)
        )
        yield block, logits.float().cpu(), present


def _load_block(
    bundle: Bundle, stores: Sequence[FeatureStore], used: Sequence[bool], clips: list[str]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Features (n, L, D) of each part, zeros where a clip has none, and present (n, parts)."""
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

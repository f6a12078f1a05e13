"""Clips of the split `test`: their predictions and scores by the ensemble, from features that were extracted before.

No member was trained on them, and nothing was chosen on them, so the mean over all members predicts them, as it does
any new clip.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mertool.fusion.calibration import Correction, apply_correction
from mertool.fusion.ensemble_weights import EnsembleWeights, member_logits
from mertool.fusion.modality_features import ModalityFeatures
from mertool.learning.cached_features import load_features
from mertool.learning.labelled_clips import IGNORE_INDEX
from mertool.manifest import Manifest
from mertool.predictions import Predictions
from mertool.significance import known_speakers, score_json
from mertool.store import FeatureStore

CLIPS_PER_BLOCK = 1024  # bounds the memory of the members' activations
PREDICTIONS = "test.csv"


@dataclass(frozen=True)
class SplitClips:
    """N clips of the split `test` that have features in some store.

    Attributes:
        clips: Clip ids, sorted.
        features: Their features.
        labels: Class indices (N,), IGNORE_INDEX for a clip without a label.
        speakers: Speaker of each clip, None where unknown.
        modalities: Modality of each store.
        without_features: Number of the split's clips that are in no store.
    """

    clips: tuple[str, ...]
    features: ModalityFeatures
    labels: np.ndarray
    speakers: tuple[str | None, ...]
    modalities: tuple[str, ...]
    without_features: int


def load_test_clips(
    stores: Sequence[FeatureStore], manifest: Manifest, classes: tuple[str, ...], device: torch.device
) -> SplitClips | None:
    """Return the test clips of a manifest that have features; None if there are none."""
    in_split = sorted(clip.clip for clip in manifest.clips if clip.split == "test")
    clips = tuple(clip for clip in in_split if any(clip in store.index for store in stores))
    if not clips:
        return None
    values, present = load_features(stores, clips)
    labels, speakers = manifest.subset(clips).known_labels(classes), manifest.speakers()
    return SplitClips(
        clips=clips,
        features=ModalityFeatures(
            [torch.from_numpy(array).to(device) for array in values], torch.from_numpy(present).to(device)
        ),
        labels=np.array([classes.index(labels[clip]) if clip in labels else IGNORE_INDEX for clip in clips]),
        speakers=tuple(speakers.get(clip) for clip in clips),
        modalities=tuple(store.recipe.modality for store in stores),
        without_features=len(in_split) - len(clips),
    )


def score_test_clips(
    folder: Path,
    test: SplitClips,
    weights: Sequence[EnsembleWeights],
    correction: Correction,
    *,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """Write the predictions of the test clips into the folder of a run, and return their scores, as JSON.

    Scores are of the clips with a label; without any there are none. Intervals are over speakers where all are known.
    """
    logits = np.concatenate(list(_mean_logits(test.features, weights, classes=len(classes))))
    probabilities = apply_correction(logits, correction)
    present = test.features.present.cpu().numpy()
    modalities = tuple(
        tuple(dict.fromkeys(name for name, has in zip(test.modalities, row, strict=True) if has)) for row in present
    )
    Predictions(test.clips, classes, probabilities, modalities).write(folder / PREDICTIONS)
    rows = np.flatnonzero(test.labels != IGNORE_INDEX)
    report: dict[str, Any] = {
        "predictions": PREDICTIONS,
        "clips": len(test.clips),
        "labelled": len(rows),
        "without_features": test.without_features,
    }
    if len(rows):
        groups = known_speakers([test.speakers[row] for row in rows])
        predicted = probabilities.argmax(1)[rows]
        report["intervals"] = "clips" if groups is None else "speakers"
        report["scores"] = score_json(test.labels[rows], predicted, len(classes), groups=groups)
    return report


def _mean_logits(
    features: ModalityFeatures, weights: Sequence[EnsembleWeights], *, classes: int
) -> Iterator[np.ndarray]:
    """Yield the mean (n, C) of all members' logits, for blocks of the clips."""
    for start in range(0, len(features), CLIPS_PER_BLOCK):
        block = features.rows(slice(start, start + CLIPS_PER_BLOCK))
        logits = [member for _, _, member in member_logits(weights, block, classes=classes)]
        yield np.mean(logits, axis=0)

"""The acoustic vector of every clip, and which clips train, choose the epoch and are scored."""

from dataclasses import dataclass

import numpy as np

from mertool.errors import MertoolError
from mertool.store import FeatureStore

LEAST_CLIPS = 8
BLOCK = 256  # clips that one read takes
MOST_HELD_OUT = 2000  # so that a rank among them costs little, however many clips there are
HELD_OUT, DEVELOPMENT = 1 / 5, 1 / 8  # shares of the clips


@dataclass(frozen=True)
class Split:
    """Rows that train, rows whose loss says when to stop, and rows that are scored; no row is in two of them."""

    train: np.ndarray
    develop: np.ndarray
    held_out: np.ndarray


def split(clips: int, seed: int) -> Split:
    """Random parts of `clips` rows, each in ascending order."""
    order = np.random.default_rng(seed).permutation(clips)
    scored, stops = (min(MOST_HELD_OUT, max(2, round(clips * share))) for share in (HELD_OUT, DEVELOPMENT))
    parts = np.split(order, [scored, scored + stops])
    return Split(np.sort(parts[2]), np.sort(parts[1]), np.sort(parts[0]))


def common_clips(sound: FeatureStore, sight: FeatureStore) -> list[str]:
    """Clips of both stores, in the order of the frames."""
    clips = [clip for clip in sight.ids if clip in sound.index]
    if len(clips) < LEAST_CLIPS:
        raise MertoolError(
            f"{sound.path} and {sight.path} have {len(clips)} clips in common, at least {LEAST_CLIPS} are needed: "
            "are they of the same manifest?"
        )
    return clips


def load_acoustic_targets(sound: FeatureStore, clips: list[str], train: np.ndarray) -> np.ndarray:
    """Mean over layers of the pooled states (N, A) of clips, float16; each layer and channel standardised by `train`.

    Two passes over the store in blocks: of 115,595 clips with 25 layers, 5.9 GB are read each time and 0.24 GB kept.
    """
    place = np.full(len(sound), -1)
    place[sound.rows(clips)] = np.arange(len(clips))
    trains = np.zeros(len(clips), bool)
    trains[train] = True
    starts = range(0, len(sound), BLOCK)
    total = square = 0.0
    for start in starts:
        rows = place[start : start + BLOCK]
        values = sound.block(start, start + BLOCK).astype(np.float64)
        finite = np.isfinite(values).all((1, 2)) | (rows < 0)
        if not finite.all():
            wrong = sound.ids[start + int(np.argmin(finite))]
            raise MertoolError(
                f"{sound.path}: the features of clip '{wrong}' hold NaN or infinity: see `mertool store check`, and "
                "extract it again"
            )
        chosen = values[(rows >= 0) & trains[rows]]
        total, square = total + chosen.sum(0), square + np.square(chosen).sum(0)
    mean = total / len(train)
    deviation = np.sqrt(np.maximum(square / len(train) - np.square(mean), 0))
    rate = 1 / np.where(deviation > 1e-5, deviation, 1)
    anchors = np.zeros((len(clips), sound.channels), np.float16)
    for start in starts:
        rows = place[start : start + BLOCK]
        values = sound.block(start, start + BLOCK)[rows >= 0]
        anchors[rows[rows >= 0]] = ((values - mean) * rate).mean(1)
    return anchors

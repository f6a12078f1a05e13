"""The acoustic target vectors, and the split of the clips into training, development and held-out ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mertool.errors import MertoolError
from mertool.store import FeatureStore, as_stored

MIN_CLIPS = 8
BLOCK_CLIPS = 256  # clips per read
# Among more clips the confidence interval of a rank is hardly narrower.
MAX_HELD_OUT_CLIPS = 2000
HELD_OUT_FRACTION, DEVELOPMENT_FRACTION = 1 / 5, 1 / 8


@dataclass(frozen=True, kw_only=True)
class AlignmentSplit:
    """Three disjoint sets of rows, each ascending.

    Attributes:
        train: Rows that the aligner is trained on.
        development: Rows whose loss chooses the best epoch.
        held_out: Rows that the scores are computed on.
    """

    train: np.ndarray
    development: np.ndarray
    held_out: np.ndarray


def split_clips(rows: np.ndarray, seed: int, *, held_out: np.ndarray | None = None) -> AlignmentSplit:
    """Split `rows` at random; `held_out` are other rows to hold out, otherwise some of `rows` are drawn for it.

    Raises MertoolError if fewer than two rows are left to train on.
    """
    order = np.random.default_rng(seed).permutation(rows)
    n_held_out, n_development = (
        min(MAX_HELD_OUT_CLIPS, max(2, round(len(rows) * fraction)))
        for fraction in (HELD_OUT_FRACTION, DEVELOPMENT_FRACTION)
    )
    if held_out is None:
        held_out, order = order[:n_held_out], order[n_held_out:]
    development, train = np.split(order, [n_development])
    if len(train) < 2:
        raise MertoolError(
            f"{len(rows)} clips are left to train an aligner, too few: give more clips outside the split 'test', "
            "of more speakers, or leave out --manifest"
        )
    return AlignmentSplit(train=np.sort(train), development=np.sort(development), held_out=np.sort(held_out))


def common_clips(audio_store: FeatureStore, video_store: FeatureStore) -> list[str]:
    """Return the sorted ids of clips in both stores; too few raise MertoolError.

    They are sorted so that the split and the batches, which are drawn for rows, do not depend on the order of a store.
    """
    clips = sorted(clip for clip in video_store.ids if clip in audio_store.index)
    if len(clips) < MIN_CLIPS:
        raise MertoolError(
            f"{audio_store.path} and {video_store.path} have {len(clips)} clips in common, at least {MIN_CLIPS} are "
            "needed: are they of the same manifest?"
        )
    return clips


def load_acoustic_targets(audio_store: FeatureStore, clips: list[str], train: np.ndarray) -> np.ndarray:
    """Return the acoustic targets (N, A) of `clips`: the mean over layers of the standardised pooled states.

    They are float16, or float32 if that of one clip does not fit; the other clips are rounded to float16 all the same.

    Each layer and channel is standardised by the mean and the deviation of the rows `train`. The store is read twice
    in blocks instead of once as a whole: of 115,595 clips with 25 layers, 5.9 GB are read each time and 0.24 GB kept.
    Raises MertoolError if a clip holds NaN or infinity.
    """
    mean, inverse_std = _statistics(audio_store, clips, train)
    targets = np.zeros((len(clips), audio_store.channels), np.float16)
    for rows, values in _blocks(audio_store, clips):
        for row, target in zip(rows, ((values - mean) * inverse_std).mean(1), strict=True):
            stored = as_stored(target, np.dtype(np.float16))
            targets = targets.astype(np.result_type(targets, stored), copy=False)
            targets[row] = stored
    return targets


def _statistics(audio_store: FeatureStore, clips: list[str], train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the inverse standard deviation (L, A) of the rows `train` of `clips`."""
    is_train = np.zeros(len(clips), bool)
    is_train[train] = True
    total = total_of_squares = np.zeros(())
    for rows, values in _blocks(audio_store, clips):
        finite = np.isfinite(values).all((1, 2))
        if not finite.all():
            raise MertoolError(
                f"{audio_store.path}: the features of clip '{clips[rows[np.argmin(finite)]]}' hold NaN or infinity: "
                "see `mertool store check`, and extract it again"
            )
        # Sums of many values, and differences of large ones, lose digits in single precision.
        train_values = values[is_train[rows]].astype(np.float64)
        total = total + train_values.sum(0)
        total_of_squares = total_of_squares + np.square(train_values).sum(0)
    mean = total / len(train)
    std = np.sqrt(np.maximum(total_of_squares / len(train) - np.square(mean), 0))
    return mean, 1 / np.where(std > 1e-5, std, 1)


def _blocks(audio_store: FeatureStore, clips: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows (B,) in `clips` and the values (B, L, A) of consecutive clips of the store; others are skipped."""
    row_of = np.full(len(audio_store), -1)
    row_of[audio_store.rows(clips)] = np.arange(len(clips))
    for start in range(0, len(audio_store), BLOCK_CLIPS):
        rows = row_of[start : start + BLOCK_CLIPS]
        yield rows[rows >= 0], audio_store.read_block(start, start + BLOCK_CLIPS)[rows >= 0]

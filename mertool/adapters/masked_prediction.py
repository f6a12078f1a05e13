"""Masked reconstruction: spans of frames are masked, and the blocks predict what was there.

Three targets are offered: `units`, k-means clusters of a frozen layer (HuBERT's own loss; Hsu et al., 2021, section
II); `features`, that layer itself; and `logmel`, the log-mel spectrogram. Everything is fitted on the training clips
of one adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from mertool.features import SAMPLE_RATE

SPAN_FRAMES = 10  # of 20 ms, as in HuBERT
MASK_PROBABILITY = 0.25  # per frame; HuBERT masks half, but its features need not tell the emotion at the same time
MAX_UNITS = 500  # the number chinese-hubert-large was trained with
FRAMES_PER_UNIT = 40
MAX_FIT_FRAMES = 200_000
N_MELS = 80
HOP, WINDOW = 320, 400  # samples at 16 kHz; 20 ms is the frame step of HuBERT


def span_mask(n_frames: int, seed: tuple[int, ...]) -> np.ndarray:
    """Return a mask (T,), true in random spans of 10 frames that cover about a quarter of the clip, at least one."""
    rng = np.random.default_rng(seed)
    width = min(SPAN_FRAMES, max(1, n_frames // 2))
    # Spans may overlap. With n spans a frame stays unmasked with probability exp(-n width / frames).
    n_spans = max(1, round(-np.log(1 - MASK_PROBABILITY) * n_frames / width))
    starts = rng.integers(0, n_frames - width + 1, n_spans)
    mask = np.zeros(n_frames, bool)
    mask[(starts[:, None] + np.arange(width)).ravel()] = True
    return mask


def log_mel(wave: np.ndarray, n_frames: int) -> np.ndarray:
    """Return the log-mel spectrogram (T, 80), float16, of a waveform at 16 kHz: windows of 25 ms every 20 ms."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    filters = mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=N_MELS,
        min_frequency=20.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    padded = np.pad(wave, (0, max(0, n_frames * HOP + WINDOW - len(wave))))
    mels = spectrogram(
        padded, window_function(WINDOW), WINDOW, HOP, fft_length=512, center=False, mel_filters=filters, log_mel="log10"
    )
    return mels.T[:n_frames].astype(np.float16)


@dataclass(kw_only=True)
class ReconstructionTarget:
    """The target of the reconstruction loss for masked frames.

    Attributes:
        kind: One of `units`, `features` and `logmel`.
        frames: Frames (T, M) of each clip: of the frozen layer or the spectrogram.
        mean: Mean (M,) of frames of the training clips.
        scale: Standard deviation (M,) of these frames.
        size: Outputs of the reconstruction head: the number of units, or M.
        kmeans: The fitted clusters; None for targets that are values.
    """

    kind: str
    frames: Sequence[np.ndarray]
    mean: np.ndarray
    scale: np.ndarray
    size: int
    kmeans: Any = None
    _units: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(cls, kind: str, frames: Sequence[np.ndarray], rows: np.ndarray, *, seed: int) -> "ReconstructionTarget":
        """Fit the standardization, and the clusters of `units`, on frames of the clips `rows`."""
        sample = _sample_frames(frames, rows, seed)
        mean, scale = sample.mean(0), sample.std(0) + 1e-5
        if kind != "units":
            return cls(kind=kind, frames=frames, mean=mean, scale=scale, size=sample.shape[1])
        from sklearn.cluster import MiniBatchKMeans

        n_units = int(min(MAX_UNITS, max(2, len(sample) // FRAMES_PER_UNIT)))
        kmeans = MiniBatchKMeans(n_units, batch_size=4096, n_init=1, random_state=seed)
        kmeans.fit((sample - mean) / scale)
        return cls(kind=kind, frames=frames, mean=mean, scale=scale, size=n_units, kmeans=kmeans)

    def targets_for(self, row: int) -> torch.Tensor:
        """Return the targets of all frames of a clip: units (T,) or standardized values (T, size)."""
        if row in self._units:
            return self._units[row]
        values = (self.frames[row].astype(np.float32) - self.mean) / self.scale
        if self.kmeans is None:
            return torch.from_numpy(values)
        # Cached: every epoch needs them, and computing hundreds of distances per frame would stall a GPU.
        self._units[row] = torch.from_numpy(self.kmeans.predict(values).astype(np.int64))
        return self._units[row]

    def loss(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of predictions (M, size) of masked frames, summed over frames."""
        if self.kind == "units":
            return nn.functional.cross_entropy(predictions, targets, reduction="sum")
        return nn.functional.mse_loss(predictions, targets, reduction="none").mean(1).sum()


def _sample_frames(frames: Sequence[np.ndarray], rows: np.ndarray, seed: int) -> np.ndarray:
    """Return frames (M, D), float32, of clips drawn from `rows`: enough to fit k-means and a standardization."""
    rng = np.random.default_rng(seed)
    sample, n_frames = [], 0
    for row in rng.permutation(rows):
        sample.append(frames[int(row)].astype(np.float32))
        n_frames += len(sample[-1])
        if n_frames >= MAX_FIT_FRAMES:
            break
    return np.concatenate(sample)

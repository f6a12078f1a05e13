"""Masked reconstruction: spans of frames are hidden, and the blocks must tell what was there.

"Masked reconstruction" can be read in three ways, and each is a target here: `units`, k-means clusters of a
frozen layer (HuBERT's own loss; Hsu et al., 2021), `features`, that layer itself, and `logmel`, the log-mel
spectrogram. Everything is fitted on the clips of one training part.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from mertool.features import SAMPLE_RATE

SPAN = 10  # frames of 20 ms, as in HuBERT
SHARE = 0.25  # of the frames; HuBERT hides half, but here the same pass must also show the emotion
MOST_UNITS = 500  # as chinese-hubert-large was trained with
FRAMES_PER_UNIT = 40
MOST_FIT_FRAMES = 200_000
MELS = 80


def span_mask(frames: int, seed: tuple[int, ...]) -> np.ndarray:
    """(T,) true where frames are hidden: spans of 10, about a quarter of the clip, at least one span."""
    random = np.random.default_rng(seed)
    width = min(SPAN, max(1, frames // 2))
    # Overlaps make the share a little smaller than the product.
    count = max(1, round(-np.log(1 - SHARE) * frames / width))
    starts = random.integers(0, frames - width + 1, count)
    mask = np.zeros(frames, bool)
    mask[(starts[:, None] + np.arange(width)).ravel()] = True
    return mask


def log_mel(wave: np.ndarray, frames: int) -> np.ndarray:
    """Log-mel spectrogram (T, 80) of a wave at 16 kHz with windows of 25 ms every 20 ms, as float16."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    filters = mel_filter_bank(257, MELS, 20.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    padded = np.pad(wave, (0, max(0, frames * 320 + 400 - len(wave))))
    mels = spectrogram(
        padded, window_function(400), 400, 320, fft_length=512, center=False, mel_filters=filters, log_mel="log10"
    )
    return mels.T[:frames].astype(np.float16)


class Target:
    """What the hidden frames of a clip are compared with: `size` outputs, and the loss of them.

    `of(row)` gives (T,) units or (T, size) values of a clip; `loss` takes predictions (M, size) of the hidden
    frames and their targets, and returns the sum over frames.
    """

    def __init__(self, kind: str, frames: Callable[[int], np.ndarray], rows: np.ndarray, seed: int):
        self.kind, self.frames = kind, frames
        sample = _sample(frames, rows, seed)
        self.mean, self.scale = sample.mean(0), sample.std(0) + 1e-5
        self.size = sample.shape[1]
        self.kmeans: Any = None
        self._units: dict[int, torch.Tensor] = {}
        if kind == "units":
            from sklearn.cluster import MiniBatchKMeans

            self.size = int(min(MOST_UNITS, max(2, len(sample) // FRAMES_PER_UNIT)))
            self.kmeans = MiniBatchKMeans(self.size, batch_size=4096, n_init=1, random_state=seed)
            self.kmeans.fit((sample - self.mean) / self.scale)

    def of(self, row: int) -> torch.Tensor:
        """Targets of all frames of one clip."""
        if row in self._units:
            return self._units[row]
        values = (self.frames(row).astype(np.float32) - self.mean) / self.scale
        if self.kmeans is None:
            return torch.from_numpy(values)
        # Looked for once: every epoch asks again, and a few hundred distances a frame would stall a GPU.
        self._units[row] = torch.from_numpy(self.kmeans.predict(values).astype(np.int64))
        return self._units[row]

    def loss(self, predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if self.kind == "units":
            return nn.functional.cross_entropy(predicted, wanted, reduction="sum")
        return nn.functional.mse_loss(predicted, wanted, reduction="none").mean(1).sum()


def _sample(frames: Callable[[int], np.ndarray], rows: np.ndarray, seed: int) -> np.ndarray:
    """Frames (M, D) of some of the clips, float32: enough to fit k-means and a normaliser."""
    random = np.random.default_rng(seed)
    chosen, count = [], 0
    for row in random.permutation(rows):
        chosen.append(frames(int(row)).astype(np.float32))
        count += len(chosen[-1])
        if count >= MOST_FIT_FRAMES:
            break
    return np.concatenate(chosen)

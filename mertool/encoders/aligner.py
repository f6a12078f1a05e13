"""The visual encoder of `align`: frames of face features into the acoustic space."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mertool.errors import MertoolError
from mertool.options.align import HEADS
from mertool.runs import load_tensors

MOST_FRAMES = 64  # of a clip; of a longer one so many are taken evenly
LONGEST_WAVE = 10_000.0  # of the position code, in frames (Vaswani et al., 2017)


class Aligner(nn.Module):
    """Standardise, project each frame, a temporal transformer, pool frames by attention, project.

    Sizes: `channels` of a frame, `width` inside, `blocks` of the transformer (pre-norm), `acoustic` channels out. At
    most `frames` frames of a clip are looked at. The position code is a sum of waves, so any number of frames has one.
    """

    def __init__(
        self, channels: int, width: int, blocks: int, acoustic: int, frames: int = MOST_FRAMES, dropout: float = 0.1
    ):
        super().__init__()
        self.sizes = {"channels": channels, "width": width, "blocks": blocks, "acoustic": acoustic, "frames": frames}
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.frame = nn.Sequential(nn.Linear(channels, width), nn.Dropout(dropout))
        block = nn.TransformerEncoderLayer(width, HEADS, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.temporal = nn.TransformerEncoder(block, blocks, nn.LayerNorm(width), enable_nested_tensor=False)
        self.attention = nn.Linear(width, 1)
        self.project = nn.Linear(width, acoustic)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T, channels), mask (B, T) true where there is a frame -> (B, acoustic)."""
        hidden = self.frame((frames.float() - self.mean) / self.std)
        hidden = hidden + positions(hidden.shape[1], hidden.shape[2], hidden.device)
        hidden = self.temporal(hidden, src_key_padding_mask=None if mask is None else ~mask)
        scores = self.attention(hidden).squeeze(-1)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return self.project((scores.softmax(dim=-1)[..., None] * hidden).sum(dim=1))

    def set_statistics(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Set the mean and the deviation (channels,) by which frames are standardised."""
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(std))

    @torch.inference_mode()
    def embed(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (1, T, channels) of one clip -> (1, acoustic)."""
        return self(frames[:, evenly(frames.shape[1], self.sizes["frames"])])

    @classmethod
    def load(cls, folder: Path) -> "Aligner":
        """Load from an align run or from a bundle's copy of one."""
        info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        try:
            aligner = cls(**info["sizes"])
            aligner.load_state_dict(load_tensors(folder / "aligner.safetensors"))
        except (KeyError, TypeError, RuntimeError) as error:
            raise MertoolError(
                f"{folder} holds no aligner of this version of mertool: run `mertool align` again"
            ) from error
        return aligner.eval()


def evenly(count: int, most: int) -> np.ndarray:
    """Which of `count` frames are looked at: all, or `most` from the first to the last."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(np.int64)


def positions(count: int, width: int, device: torch.device) -> torch.Tensor:
    """(count, width): sines and cosines of the frame's number."""
    rates = LONGEST_WAVE ** -(torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(count, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)

"""The visual encoder of `align`: frames of face features into the acoustic space."""

import json
from pathlib import Path

import torch
from torch import nn

from mertool.runs import load_tensors


class Aligner(nn.Module):
    """Standardise, project each frame, pool frames by attention, project into the acoustic space.

    Sizes: `channels` of a frame, `width` inside, `acoustic` channels out.
    """

    def __init__(self, channels: int, width: int, acoustic: int, dropout: float = 0.1):
        super().__init__()
        self.sizes = {"channels": channels, "width": width, "acoustic": acoustic}
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.frame = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Dropout(dropout))
        self.attention = nn.Linear(width, 1)
        self.project = nn.Linear(width, acoustic)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T, channels), mask (B, T) true where there is a frame -> (B, acoustic)."""
        hidden = self.frame((frames - self.mean) / self.std)
        scores = self.attention(hidden).squeeze(-1)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return self.project((scores.softmax(dim=-1)[..., None] * hidden).sum(dim=1))

    @torch.inference_mode()
    def embed(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (1, T, channels) of one clip -> (1, acoustic)."""
        return self(frames.float())

    @classmethod
    def load(cls, folder: Path) -> "Aligner":
        """Load from an align run or from a bundle's copy of one."""
        info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        aligner = cls(**info["sizes"])
        aligner.load_state_dict(load_tensors(folder / "aligner.safetensors"))
        return aligner.eval()

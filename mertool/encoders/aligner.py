"""The visual encoder that `align` trains: from the face features of frames to one vector in the acoustic space."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mertool.errors import MertoolError
from mertool.runs import load_tensors
from mertool.untrusted import read_json_object

HEADS = 4
FINAL = "final"  # the aligner of new clips
FOLDS = "folds"  # folder of the others in a run
MAX_FRAMES = 64  # of a clip; of a longer one so many are taken at equal distances
FRAMES_LIMIT = 100_000  # largest valid value of `frames` in a file
MAX_WAVELENGTH = 10_000.0  # of the position encoding, in frames (Vaswani et al., 2017)


class Aligner(nn.Module):
    """A temporal transformer with attention pooling.

    Frames are standardised and projected to `width` channels; a pre-norm transformer and attention pooling over time
    follow, and a projection to the acoustic channels. Positions are encoded by sines, so a clip may have any number of
    frames.

    Attributes:
        sizes: The arguments of the constructor, as run.json holds them: `channels` of a frame, `width` and `blocks`
            of the transformer, `acoustic` channels of the output, `frames` of a clip that are used at most.
        mean: Mean (channels,) by which frames are standardised.
        std: Standard deviation (channels,) by which frames are standardised.
    """

    def __init__(
        self, *, channels: int, width: int, blocks: int, acoustic: int, frames: int = MAX_FRAMES, dropout: float = 0.1
    ):
        super().__init__()
        self.sizes = {"channels": channels, "width": width, "blocks": blocks, "acoustic": acoustic, "frames": frames}
        # Buffers, so that the statistics of the training clips are saved with the weights.
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.frame = nn.Sequential(nn.Linear(channels, width), nn.Dropout(dropout))
        block = nn.TransformerEncoderLayer(
            width, HEADS, 4 * width, dropout=dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.temporal = nn.TransformerEncoder(block, blocks, nn.LayerNorm(width), enable_nested_tensor=False)
        self.attention = nn.Linear(width, 1)
        self.project = nn.Linear(width, acoustic)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the vectors (B, acoustic) of frames (B, T, channels); `mask` (B, T) is true where there is a frame."""
        hidden = self.frame((frames.float() - self.mean) / self.std)
        hidden = hidden + sinusoidal_positions(hidden.shape[1], hidden.shape[2], hidden.device)
        hidden = self.temporal(hidden, src_key_padding_mask=None if mask is None else ~mask)
        scores = self.attention(hidden).squeeze(-1)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return self.project((scores.softmax(dim=-1)[..., None] * hidden).sum(dim=1))

    @torch.inference_mode()
    def encode_clip(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the vector (1, acoustic) of one clip with frames (1, T, channels)."""
        return self(frames[:, uniform_frame_indices(frames.shape[1], self.sizes["frames"])])

    def set_statistics(self, mean: np.ndarray, std: np.ndarray) -> None:
        """Set the mean and the standard deviation (channels,) by which frames are standardised."""
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(std))

    @classmethod
    def load(cls, folder: Path, tensors_file: Path | None = None) -> "Aligner":
        """Load the final aligner of a run of `align` or of a bundle, or another one of the run from `tensors_file`.

        Raises MertoolError for anything else.
        """
        sizes: Any = read_json_object(folder / "run.json", "run `mertool align` again").get("sizes")
        tensors = load_tensors(tensors_file or folder / "aligner.safetensors")
        try:
            # Compared before a model is made: sizes that are wrong might need all memory.
            if sizes != {**_sizes_of(tensors), "frames": sizes["frames"]} or not 0 < sizes["frames"] <= FRAMES_LIMIT:
                raise ValueError("sizes that are not those of the tensors")
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise ValueError("values that are not finite")
            aligner = cls(**sizes)
            aligner.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, IndexError, AssertionError, RuntimeError) as error:
            raise MertoolError(
                f"{folder} holds no aligner of this version of mertool: run `mertool align` again"
            ) from error
        return aligner.eval()


@dataclass(frozen=True, kw_only=True)
class CrossFittedAligner:
    """The aligners of a run: the final one, and one for each fold of the labelled clips if they were cross-fitted.

    Attributes:
        final: Encodes new clips, and clips that no fold holds.
        folds: Aligners by name; each was trained without the clips of its fold.
        aligner_of_clip: The name of the aligner of clips that trained `final`.
    """

    final: Aligner
    folds: Mapping[str, Aligner] = field(default_factory=dict)
    aligner_of_clip: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "CrossFittedAligner":
        """Load the aligners of a run of `align`, or of a bundle, which has only the final one; raises MertoolError."""
        info = read_json_object(folder / "run.json", "run `mertool align` again")
        folds = {path.stem: Aligner.load(folder, path).to(device) for path in sorted((folder / FOLDS).glob("fold*"))}
        aligner_of_clip = info.get("aligner_of_clip", {})
        if set(aligner_of_clip.values()) != set(folds):
            raise MertoolError(
                f"{folder / FOLDS} lacks aligners that {folder / 'run.json'} names: run `mertool align` again"
            )
        return cls(final=Aligner.load(folder).to(device), folds=folds, aligner_of_clip=aligner_of_clip)

    def name_of(self, clip_id: str) -> str:
        """Return the name of a clip's aligner."""
        return self.aligner_of_clip.get(clip_id, FINAL)

    def aligner(self, name: str) -> Aligner:
        """Return an aligner by its name."""
        return self.final if name == FINAL else self.folds[name]


def _sizes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the sizes of the aligner that has these tensors, all but `frames`."""
    blocks = {name.split(".")[2] for name in tensors if name.startswith("temporal.layers.")}
    width, channels = tensors["frame.0.weight"].shape
    return {"channels": channels, "width": width, "blocks": len(blocks), "acoustic": tensors["project.weight"].shape[0]}


def uniform_frame_indices(count: int, max_frames: int) -> np.ndarray:
    """Return the indices of at most `max_frames` of `count` frames, at equal distances, the first and last included."""
    if count <= max_frames:
        return np.arange(count)
    return np.linspace(0, count - 1, max_frames).round().astype(np.int64)


def sinusoidal_positions(count: int, width: int, device: torch.device) -> torch.Tensor:
    """Return sines and cosines (count, width) that encode the index of each frame."""
    frequencies = MAX_WAVELENGTH ** -(torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(count, device=device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)

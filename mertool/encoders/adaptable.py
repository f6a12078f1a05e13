"""`AdaptableModel`: the interface between an encoder family and the training of adapters."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import nn


class AdaptableModel(ABC):
    """The model of a speech encoder in the parts that adaptation runs or leaves out.

    `run_front_end` turns a waveform into frames; it is frozen, so it runs once per clip. `project` makes hidden states
    of them, which may be masked, and `run_blocks` adds the positions and runs the transformer blocks. Where training
    starts from stored outputs of a block instead, `remove_prefix` removes all that lies before the next block.

    Attributes:
        model: The module of transformers, changed in place.
        blocks: Its list of blocks, numbered as in the whole encoder also where the first ones are removed.
        supports_padding: Whether clips of different lengths may share a forward pass from the front end on.
    """

    supports_padding: bool

    def __init__(self, model: Any, blocks: nn.ModuleList):
        self.model, self.blocks = model, blocks

    def mask_embedding(self) -> torch.Tensor | None:
        """Return the vector (D,) by which the encoder was trained to replace masked frames; None without one."""
        return None

    @abstractmethod
    def num_frames(self, samples: int) -> int:
        """Return the number of frames of a waveform of that many samples."""

    @abstractmethod
    def run_front_end(self, waveform: np.ndarray) -> torch.Tensor:
        """Return the frames (T, C) of a waveform (n,) at 16 kHz, no longer than the encoder's window."""

    @abstractmethod
    def remove_front_end(self) -> None:
        """Remove what `run_front_end` runs."""

    @abstractmethod
    def remove_prefix(self, first: int) -> None:
        """Remove everything below block `first`, so that `run_blocks` takes the input of that block."""

    @abstractmethod
    def project(self, frames: torch.Tensor) -> torch.Tensor:
        """Return hidden states (B, T, D), without positions, of frames (B, T, C) of the front end."""

    @abstractmethod
    def run_blocks(self, hidden: torch.Tensor, valid: torch.Tensor | None) -> None:
        """Run the blocks on hidden states (B, T, D); `valid` (B, T) is true except in padding, None without padding.

        Outputs are read by `capture_hidden_states`.
        """

"""`Encoder`: the interface between an encoder family and the extraction of features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mertool.encoders.adaptable import AdaptableModel
from mertool.encoders.hidden_states import find_blocks
from mertool.errors import MertoolError
from mertool.features import SAMPLE_RATE

# Attention grows with the square of the length, so families cut longer audio into windows.
MAX_WINDOW_SECONDS = 30


class Encoder(ABC):
    """A frozen transformer that turns the media of a clip into hidden states.

    Extraction calls `prepare` for each clip in a thread of its own, groups the prepared clips into batches by `cost`,
    and passes each batch to `encode_prepared`. The hidden states of a clip must not depend on its batch.

    model: the module of transformers, in evaluation mode on `device`.
    blocks: its transformer blocks in order; block n is `blocks[n - 1]`.
    num_layers: number of blocks. Layer 0 is the input of block 1, layer n the output of block n.
    channels: D, the width of a hidden state.
    device: where `model` computes.
    truncated: inputs that `prepare` has cut to the longest input of the encoder so far.
    windows: the kinds of windows that a speech encoder offers, none for one without a choice.
    window: the kind that is used, one of `windows`.
    window_samples: length of a window in samples of audio; longer audio is divided.
    """

    windows: tuple[str, ...] = ()
    window: str | None = None
    window_samples: int = MAX_WINDOW_SECONDS * SAMPLE_RATE

    def __init__(self, model: Any, *, num_layers: int, channels: int, device: torch.device):
        self.model = model
        self.num_layers, self.channels, self.device = num_layers, channels, device
        self.blocks: nn.ModuleList = find_blocks(model, num_layers)
        self.truncated = 0
        self.window = self.windows[0] if self.windows else None

    def set_window(self, window: str) -> None:
        """Choose one of `windows`. Raises MertoolError for another one."""
        if window not in self.windows:
            valid = ", ".join(self.windows) or "none, as it takes waveforms"
            raise MertoolError(f"{type(self.model).__name__} has no window '{window}': valid: {valid}")
        self.window = window

    def use_projection(self) -> None:
        """Return image features after the projection of a CLIP. Raises MertoolError for any other encoder."""
        raise MertoolError(f"{type(self.model).__name__} has no projection: image features are those of a CLIP")

    def adaptable(self) -> AdaptableModel:
        """Return the model as adaptation runs it. Raises MertoolError for an encoder that cannot be adapted."""
        raise MertoolError(f"{type(self.model).__name__} cannot be adapted: finetune adapts speech encoders")

    @abstractmethod
    def prepare(self, item: Any) -> Any:
        """Convert one clip's media to tensors on the CPU; raises ClipError for media that cannot be encoded.

        Audio is a waveform (n,) float32 at 16 kHz, video face crops (T, H, W, 3) uint8 RGB, text a string.
        """

    @abstractmethod
    def cost(self, prepared: Any) -> float:
        """Return the cost of a prepared clip in a batch: seconds of audio, frames of video or tokens of text."""

    @abstractmethod
    def encode_prepared(self, prepared: Sequence[Any], layers: Sequence[int]) -> list[torch.Tensor]:
        """Return the hidden states (L, T, D) of each prepared clip, float32 on `device`, for `layers` in their order.

        T counts audio frames (50 per second), video frames or tokens without the special ones.
        """

    def encode(self, items: Sequence[Any], layers: Sequence[int]) -> list[torch.Tensor]:
        """Prepare and encode several clips as one batch; see `prepare` and `encode_prepared`."""
        return self.encode_prepared([self.prepare(item) for item in items], layers)

"""The encoder half of Whisper, on log-mel spectrograms (Radford et al., 2022).

Whisper was trained on windows of 30 s. With the window `30` every window is padded to that length, as transformers
does, and the frames of the padding are removed from the output. With `clip` the spectrogram ends where the audio ends,
and the positions of the frames are the first ones of the table: about fifteen times less work for a clip of 4 s. Audio
longer than a window is divided into windows in both. Other lengths than 30 s follow the checkpoint.

Layer n is the output of block n, before the layer norm that follows the last block.
"""

import inspect
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import gelu
from transformers import AutoModel
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from mertool.devices import to_device
from mertool.encoders.adaptable import AdaptableModel
from mertool.encoders.base import Encoder
from mertool.encoders.batch_invariance import forward_passes
from mertool.encoders.hidden_states import capture_hidden_states, stack_layers
from mertool.encoders.pretrained import load_config, load_feature_extractor, load_pretrained
from mertool.encoders.windows import ADAPTATION_WINDOW, FOLLOWS_CLIP
from mertool.errors import ClipError
from mertool.features import SAMPLE_RATE

MODALITY = "audio"
MODEL_TYPES = ("whisper",)
WINDOWS = ("30", "clip")
SAMPLES_PER_MEL, MELS_PER_FRAME = 160, 2  # a spectrum each 10 ms, a hidden state each 20 ms
SAMPLES_PER_FRAME = SAMPLES_PER_MEL * MELS_PER_FRAME
# transformers before 5 requires one more argument.
BLOCK_OPTIONS = {
    name: None for name in ("layer_head_mask",) if name in inspect.signature(WhisperEncoderLayer.forward).parameters
}


def load(folder: Path, *, device: torch.device, dtype: torch.dtype) -> "WhisperEncoder":
    """Load the encoder of the Whisper in `folder`; raises ValueError for spectrograms of another time step."""
    config = load_config(folder)
    config.encoder_layerdrop = 0.0
    model = load_pretrained(AutoModel, folder, device=device, dtype=dtype, config=config).get_encoder()
    extractor = load_feature_extractor(folder)
    if (extractor.sampling_rate, extractor.hop_length) != (SAMPLE_RATE, SAMPLES_PER_MEL):
        raise ValueError(
            f"its spectrograms have a step of {extractor.hop_length} samples at {extractor.sampling_rate} Hz: "
            f"{SAMPLES_PER_MEL} at {SAMPLE_RATE} Hz are valid"
        )
    return WhisperEncoder(model, extractor=extractor, device=device, dtype=dtype)


class MelWindow(NamedTuple):
    """A window of a clip: its log-mel spectrogram (mels, 2 T or more), and T, the number of its valid frames."""

    mel: torch.Tensor
    n_frames: int


class WhisperEncoder(Encoder):
    """Two convolutions on a log-mel spectrogram, a table of positions, and a transformer.

    extractor: transformers' computation of log-mel spectrograms.
    window: `30` or `clip`, see above.
    """

    windows = WINDOWS

    def __init__(self, model: Any, *, extractor: Any, device: torch.device, dtype: torch.dtype):
        config = model.config
        super().__init__(model, num_layers=int(config.encoder_layers), channels=int(config.d_model), device=device)
        self.extractor, self.dtype = extractor, dtype
        self.n_positions = int(config.max_source_positions)
        self.window_samples = min(int(extractor.n_samples), self.n_positions * SAMPLES_PER_FRAME)

    def num_frames(self, samples: int) -> int:
        """Return the number of frames (20 ms each) of a waveform of that many samples."""
        return -(-samples // SAMPLES_PER_FRAME)

    def prepare(self, item: np.ndarray) -> list[MelWindow]:
        """Divide a waveform (n,) at 16 kHz into windows of at most 30 s, the last one being the shortest.

        Raises ClipError too_short.
        """
        if not len(item):
            raise ClipError("too_short", "no samples")
        starts = range(0, len(item), self.window_samples)
        return [self._prepare_window(item[start : start + self.window_samples]) for start in starts]

    def _prepare_window(self, waveform: np.ndarray) -> MelWindow:
        if self.window == FOLLOWS_CLIP:
            # Whole frames, so that the convolutions read zeros after the last one, as they do in a padded batch.
            size = {"padding": "longest", "pad_to_multiple_of": SAMPLES_PER_FRAME}
        else:
            size = {"padding": "max_length", "max_length": self.n_positions * SAMPLES_PER_FRAME}
        mels = self.extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt", **size).input_features
        return MelWindow(mels[0], self.num_frames(len(waveform)))

    def cost(self, prepared: list[MelWindow]) -> float:
        """Return seconds of audio, that of the padding to 30 s included."""
        return sum(window.mel.shape[1] for window in prepared) * SAMPLES_PER_MEL / SAMPLE_RATE

    def encode_prepared(self, prepared: Sequence[list[MelWindow]], layers: Sequence[int]) -> list[torch.Tensor]:
        """Return (L, T, D) for each prepared clip, its windows end to end."""
        windows = [window for clip in prepared for window in clip]
        states: dict[int, torch.Tensor] = {}
        seconds = [window.mel.shape[1] * SAMPLES_PER_MEL / SAMPLE_RATE for window in windows]
        for indices in forward_passes(seconds, device_type=self.device.type):
            batch = self._forward([windows[index] for index in indices], layers)
            states.update(zip(indices, batch, strict=True))
        encoded = iter([states[index] for index in range(len(windows))])
        return [torch.cat([next(encoded) for _ in clip], dim=1) for clip in prepared]

    @torch.inference_mode()
    def _forward(self, windows: list[MelWindow], layers: Sequence[int]) -> list[torch.Tensor]:
        mels = nn.utils.rnn.pad_sequence([window.mel.T for window in windows], batch_first=True)
        lengths = torch.tensor([window.mel.shape[1] // MELS_PER_FRAME for window in windows])
        valid = torch.arange(mels.shape[1] // MELS_PER_FRAME) < lengths[:, None]
        frames = run_convolutions(self.model, to_device(mels, self.device).to(self.dtype))
        hidden = frames + self.model.embed_positions.weight[: frames.shape[1]]
        with capture_hidden_states(self.blocks, layers) as states:
            run_blocks(self.blocks, hidden, None if bool(valid.all()) else to_device(valid, self.device))
        stacked = stack_layers(states, layers)
        return [stacked[:, row, : window.n_frames] for row, window in enumerate(windows)]

    def adaptable(self) -> "AdaptableWhisper":
        """Return the model as adaptation runs it, on windows that follow the clip."""
        return AdaptableWhisper(self)


class AdaptableWhisper(AdaptableModel):
    """A Whisper whose windows follow the clip: with 30 s each clip would cost the memory and time of 1,500 frames."""

    supports_padding = True

    def __init__(self, encoder: WhisperEncoder):
        super().__init__(encoder.model, encoder.blocks)
        self.encoder = copy(encoder)
        self.encoder.set_window(ADAPTATION_WINDOW)

    def num_frames(self, samples: int) -> int:
        return self.encoder.num_frames(samples)

    def run_front_end(self, waveform: np.ndarray) -> torch.Tensor:
        (window,) = self.encoder.prepare(waveform)
        return run_convolutions(self.model, window.mel.T[None].to(self.encoder.device))[0]

    def remove_front_end(self) -> None:
        self.model.conv1 = self.model.conv2 = nn.Identity()

    def remove_prefix(self, first: int) -> None:
        self.model.embed_positions = None
        for index in range(first - 1):
            self.blocks[index] = _PassThroughBlock()

    def project(self, frames: torch.Tensor) -> torch.Tensor:
        return frames

    def run_blocks(self, hidden: torch.Tensor, valid: torch.Tensor | None) -> None:
        if self.model.embed_positions is not None:
            hidden = hidden + self.model.embed_positions.weight[: hidden.shape[1]]
        run_blocks(self.blocks, hidden, valid)


class _PassThroughBlock(nn.Module):
    """Stands for a block of the frozen prefix and returns its input."""

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden


def run_convolutions(model: Any, mels: torch.Tensor) -> torch.Tensor:
    """Return frames (B, T, D) of spectrograms (B, 2 T, mels), without positions."""
    frames = gelu(model.conv2(gelu(model.conv1(mels.transpose(1, 2)))))
    return frames.transpose(1, 2)


def run_blocks(blocks: nn.ModuleList, hidden: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Return the output (B, T, D) of all blocks; frames where `valid` (B, T) is false are attended to by none."""
    mask = None
    if valid is not None:
        lowest = torch.finfo(hidden.dtype).min
        mask = torch.zeros(valid.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(~valid, lowest)
        mask = mask[:, None, None]
    for block in blocks:
        output = block(hidden, attention_mask=mask, **BLOCK_OPTIONS)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden

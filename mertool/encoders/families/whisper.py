"""The encoder half of Whisper, on log-mel spectrograms of 30 s windows (Radford et al., 2022)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from mertool.devices import to_device
from mertool.encoders.base import MAX_WINDOW_SECONDS, Encoder
from mertool.encoders.hidden_states import capture_hidden_states, stack_layers
from mertool.encoders.pretrained import load_config, load_feature_extractor, load_pretrained
from mertool.features import SAMPLE_RATE

MODALITY = "audio"
MODEL_TYPES = ("whisper",)
SAMPLES_PER_FRAME = 320  # 20 ms


def load(folder: Path, *, device: torch.device, dtype: torch.dtype) -> "WhisperEncoder":
    """Load the encoder of the Whisper in `folder`."""
    config = load_config(folder)
    config.encoder_layerdrop = 0.0
    model = load_pretrained(AutoModel, folder, device=device, dtype=dtype, config=config).get_encoder()
    extractor = load_feature_extractor(folder)
    return WhisperEncoder(model, extractor=extractor, device=device, dtype=dtype)


class WhisperEncoder(Encoder):
    """Whisper pads every window to 30 s; the frames of the padding are removed.

    extractor: transformers' computation of log-mel spectrograms.
    """

    def __init__(self, model: Any, *, extractor: Any, device: torch.device, dtype: torch.dtype):
        config = model.config
        super().__init__(model, num_layers=int(config.encoder_layers), channels=int(config.d_model), device=device)
        self.extractor, self.dtype = extractor, dtype

    def prepare(self, item: np.ndarray) -> tuple[torch.Tensor, list[int]]:
        """Return log-mel windows (W, mels, 3000) of a waveform (n,) at 16 kHz, and the valid frames of each."""
        size = MAX_WINDOW_SECONDS * SAMPLE_RATE
        windows = [item[start : start + size] for start in range(0, len(item), size)]
        mels = [self.extractor(window, sampling_rate=SAMPLE_RATE, return_tensors="pt") for window in windows]
        frames = [-(-len(window) // SAMPLES_PER_FRAME) for window in windows]
        return torch.cat([mel.input_features for mel in mels]), frames

    def cost(self, prepared: tuple[torch.Tensor, list[int]]) -> float:
        """Return seconds of padded audio: each window costs 30."""
        return len(prepared[1]) * MAX_WINDOW_SECONDS

    @torch.inference_mode()
    def encode_prepared(
        self, prepared: Sequence[tuple[torch.Tensor, list[int]]], layers: Sequence[int]
    ) -> list[torch.Tensor]:
        """Return (L, T, D) for each prepared clip, its windows end to end."""
        with capture_hidden_states(self.blocks, layers) as states:
            self.model(to_device(torch.cat([mels for mels, _ in prepared]), self.device).to(self.dtype))
        windows = iter(stack_layers(states, layers).unbind(1))
        return [torch.cat([next(windows)[:, :count] for count in counts], dim=1) for _, counts in prepared]

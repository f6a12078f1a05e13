"""Speech encoders: whatever AutoModel loads that takes a waveform, and Whisper's encoder.

A clip's features do not depend on its batch: layer-norm models are padded with an attention mask;
models whose padding would leak (group norm over time, data2vec's stacked positional convolutions) get
batches of equal length only.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from mertool.encoders.blocks import find_blocks, stack, tap
from mertool.encoders.checkpoint import load_model
from mertool.errors import ClipError
from mertool.features import SAMPLE_RATE

MOST_SECONDS = 30  # longer clips are cut into equal pieces: attention grows with the square
MASK_SAFE = ("hubert", "wav2vec2", "wavlm", "unispeech", "unispeech-sat")


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the encoder in `folder`."""
    config = AutoConfig.from_pretrained(folder)
    kind = WhisperEncoder if config.model_type == "whisper" else WaveformEncoder
    return kind(folder, config, device, dtype)


class WaveformEncoder:
    """HuBERT, wav2vec 2.0, WavLM, data2vec-audio and their kin."""

    def __init__(self, folder: Path, config: Any, device: torch.device, dtype: torch.dtype):
        # Masking and layer drop are ours to switch on, also in train mode.
        overrides = {"apply_spec_augment": False, "layerdrop": 0.0}
        known = {key: value for key, value in overrides.items() if hasattr(config, key)}
        for key, value in known.items():
            setattr(config, key, value)
        self.model: Any = load_model(AutoModel, folder, config=config).to(device, dtype).eval()
        if not hasattr(self.model, "_get_feat_extract_output_lengths"):
            raise ValueError(f"{config.model_type} does not take a waveform")
        self.layers, self.channels = int(config.num_hidden_layers), int(config.hidden_size)
        self.blocks = find_blocks(self.model, self.layers)
        self.pads = config.model_type in MASK_SAFE and getattr(config, "feat_extract_norm", "") == "layer"
        self.normalises = _normalises(folder, self.pads)
        self.device, self.dtype = device, dtype

    def cost(self, wave: np.ndarray) -> float:
        """Seconds of sound."""
        return len(wave) / SAMPLE_RATE

    def frames(self, samples: int) -> int:
        """Frames (20 ms each) the encoder makes of that many samples."""
        return int(self.model._get_feat_extract_output_lengths(samples))

    def encode(self, waves: list[np.ndarray], keep: tuple[int, ...]) -> list[torch.Tensor]:
        """(L, T, D) for each wave (n,) at 16 kHz, 50 frames per second. Raises ClipError too_short."""
        pieces = [self._pieces(wave) for wave in waves]
        flat = [piece for group in pieces for piece in group]
        encoded = iter(self._encode_pieces(flat, keep))
        return [torch.cat([next(encoded) for _ in group], dim=1) for group in pieces]

    def prepare(self, wave: np.ndarray) -> torch.Tensor:
        """The waveform as the encoder was trained on it: zero mean and unit variance where it wants that."""
        samples = torch.from_numpy(np.ascontiguousarray(wave, np.float32))
        if self.normalises:
            samples = (samples - samples.mean()) / torch.sqrt(samples.var(unbiased=False) + 1e-7)
        return samples

    def _pieces(self, wave: np.ndarray) -> list[torch.Tensor]:
        count = -(-len(wave) // (MOST_SECONDS * SAMPLE_RATE))
        if self.frames(len(wave)) < 1:
            raise ClipError("too_short", f"{len(wave)} samples are too few for one frame")
        return list(self.prepare(wave).tensor_split(count))

    def _encode_pieces(self, pieces: list[torch.Tensor], keep: tuple[int, ...]) -> list[torch.Tensor]:
        if self.pads:
            groups = [list(range(len(pieces)))]
        else:
            by_length: dict[int, list[int]] = defaultdict(list)
            for index, piece in enumerate(pieces):
                by_length[len(piece)].append(index)
            groups = list(by_length.values())
        result: list[Any] = [None] * len(pieces)
        for group in groups:
            for index, frames in zip(group, self._forward([pieces[i] for i in group], keep), strict=True):
                result[index] = frames
        return result

    @torch.inference_mode()
    def _forward(self, pieces: list[torch.Tensor], keep: tuple[int, ...]) -> list[torch.Tensor]:
        padded, mask = pad(pieces)
        options = {} if mask.all() else {"attention_mask": mask.to(self.device)}
        with tap(self.blocks, keep) as found:
            self.model(padded.to(self.device, self.dtype), **options)
        layers = stack(found, keep)
        return [layers[:, row, : self.frames(len(piece))] for row, piece in enumerate(pieces)]


class WhisperEncoder:
    """The encoder half of Whisper: 30 s windows, of which the frames of real sound are kept."""

    def __init__(self, folder: Path, config: Any, device: torch.device, dtype: torch.dtype):
        config.encoder_layerdrop = 0.0
        self.model: Any = load_model(AutoModel, folder, config=config).get_encoder()
        self.model = self.model.to(device, dtype).eval()
        self.extractor = AutoFeatureExtractor.from_pretrained(folder)
        self.layers, self.channels = int(config.encoder_layers), int(config.d_model)
        self.blocks = find_blocks(self.model, self.layers)
        self.device, self.dtype = device, dtype

    def cost(self, wave: np.ndarray) -> float:
        """Seconds of sound: every window costs 30."""
        return max(1, -(-len(wave) // (MOST_SECONDS * SAMPLE_RATE))) * MOST_SECONDS

    def encode(self, waves: list[np.ndarray], keep: tuple[int, ...]) -> list[torch.Tensor]:
        """(L, T, D) for each wave (n,) at 16 kHz, 50 frames per second."""
        size = MOST_SECONDS * SAMPLE_RATE
        windows = [[wave[i : i + size] for i in range(0, len(wave), size)] for wave in waves]
        encoded = iter([self._forward(window, keep) for group in windows for window in group])
        return [torch.cat([next(encoded) for _ in group], dim=1) for group in windows]

    @torch.inference_mode()
    def _forward(self, window: np.ndarray, keep: tuple[int, ...]) -> torch.Tensor:
        mel = self.extractor(window, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        with tap(self.blocks, keep) as found:
            self.model(mel.to(self.device, self.dtype))
        return stack(found, keep)[:, 0, : -(-len(window) // 320)]


def pad(pieces: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Waves (n,) as one zero-padded batch (B, max n) and its attention mask."""
    lengths = torch.tensor([len(piece) for piece in pieces])
    padded = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    return padded, (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()


def _normalises(folder: Path, default: bool) -> bool:
    try:
        return bool(AutoFeatureExtractor.from_pretrained(folder).do_normalize)
    except (OSError, ValueError, AttributeError):
        return default

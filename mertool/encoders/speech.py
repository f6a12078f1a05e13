"""Speech encoders: whatever AutoModel loads that takes a waveform, and Whisper's encoder.

A clip's features do not depend on its batch. Models of the wav2vec 2.0 kind are padded with an attention
mask, those with group norm over time with statistics over each clip's own frames; models whose padding
would leak all the same (data2vec's stacked positional convolutions) get batches of equal length only.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from mertool.devices import to_device
from mertool.encoders.hidden_states import capture_hidden_states, find_blocks, remove_weight_norm, stack
from mertool.encoders.loading import load_model
from mertool.errors import ClipError
from mertool.features import SAMPLE_RATE

MOST_SECONDS = 30  # longer clips are cut into equal pieces: attention grows with the square
# Seconds in one forward pass, whatever the batch: a film of one clip must not need the memory of a film.
AT_ONCE = {"cpu": 60}
AT_ONCE_ON_GPU = 640
MASK_SAFE = ("hubert", "wav2vec2", "wavlm", "unispeech", "unispeech-sat")


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the encoder in `folder`."""
    config = AutoConfig.from_pretrained(folder)
    kind = WhisperEncoder if config.model_type == "whisper" else Wav2Vec2FamilyEncoder
    return kind(folder, config, device, dtype)


class Wav2Vec2FamilyEncoder:
    """HuBERT, wav2vec 2.0, WavLM, data2vec-audio and their kin."""

    def __init__(self, folder: Path, config: Any, device: torch.device, dtype: torch.dtype):
        # Masking and layer drop are ours to switch on, also in train mode.
        overrides = {"apply_spec_augment": False, "layerdrop": 0.0}
        known = {key: value for key, value in overrides.items() if hasattr(config, key)}
        for key, value in known.items():
            setattr(config, key, value)
        self.model: Any = load_model(AutoModel, folder, config=config)
        if not hasattr(self.model, "_get_feat_extract_output_lengths"):
            raise ValueError(f"{config.model_type} does not take a waveform")
        remove_weight_norm(self.model)
        layer_norm = getattr(config, "feat_extract_norm", "") == "layer"
        self.pads = config.model_type in MASK_SAFE
        self.norm = _own_frames_norm(self.model) if self.pads and not layer_norm else None
        self.model = self.model.to(device, dtype).eval()
        self.layers, self.channels = int(config.num_hidden_layers), int(config.hidden_size)
        self.blocks = find_blocks(self.model, self.layers)
        self.normalises = _normalises(folder, self.pads and layer_norm)
        self.device, self.dtype = device, dtype

    def frames(self, samples: int) -> int:
        """Frames (20 ms each) the encoder makes of that many samples."""
        return int(self.model._get_feat_extract_output_lengths(samples))

    def standardise(self, wave: np.ndarray) -> torch.Tensor:
        """The waveform as the encoder was trained on it: zero mean and unit variance where it wants that."""
        samples = torch.from_numpy(np.ascontiguousarray(wave, np.float32))
        if self.normalises:
            samples = (samples - samples.mean()) / torch.sqrt(samples.var(unbiased=False) + 1e-7)
        return samples

    def prepare(self, wave: np.ndarray) -> list[torch.Tensor]:
        """A wave (n,) at 16 kHz as pieces of at most 30 s. Raises ClipError too_short."""
        if self.frames(len(wave)) < 1:
            raise ClipError("too_short", f"{len(wave)} samples are too few for one frame")
        return list(self.standardise(wave).tensor_split(-(-len(wave) // (MOST_SECONDS * SAMPLE_RATE))))

    def cost(self, pieces: list[torch.Tensor]) -> float:
        """Seconds of sound."""
        return sum(map(len, pieces)) / SAMPLE_RATE

    def encode(self, waves: list[np.ndarray], keep: tuple[int, ...]) -> list[torch.Tensor]:
        """(L, T, D) for each wave (n,) at 16 kHz, 50 frames per second. Raises ClipError too_short."""
        return self.encode_prepared([self.prepare(wave) for wave in waves], keep)

    def encode_prepared(self, waves: list[list[torch.Tensor]], keep: tuple[int, ...]) -> list[torch.Tensor]:
        """(L, T, D) for each prepared wave."""
        flat = [piece for pieces in waves for piece in pieces]
        encoded = iter(self._encode_pieces(flat, keep))
        return [torch.cat([next(encoded) for _ in pieces], dim=1) for pieces in waves]

    def _encode_pieces(self, pieces: list[torch.Tensor], keep: tuple[int, ...]) -> list[torch.Tensor]:
        groups: dict[int, list[int]] = defaultdict(list)
        for index, piece in enumerate(pieces):
            groups[0 if self.pads else len(piece)].append(index)
        result: list[Any] = [None] * len(pieces)
        for group in groups.values():
            seconds = max(len(pieces[index]) for index in group) / SAMPLE_RATE
            count = max(1, int(AT_ONCE.get(self.device.type, AT_ONCE_ON_GPU) / seconds))
            for start in range(0, len(group), count):
                some = group[start : start + count]
                for index, frames in zip(some, self._forward([pieces[i] for i in some], keep), strict=True):
                    result[index] = frames
        return result

    @torch.inference_mode()
    def _forward(self, pieces: list[torch.Tensor], keep: tuple[int, ...]) -> list[torch.Tensor]:
        padded, mask = pad(pieces)
        options = {} if mask.all() else {"attention_mask": to_device(mask, self.device)}
        if self.norm is not None:
            self.norm.count_frames([len(piece) for piece in pieces], padded.shape[1])
        with capture_hidden_states(self.blocks, keep) as found:
            self.model(to_device(padded, self.device).to(self.dtype), **options)
        layers = stack(found, keep)
        return [layers[:, row, : self.frames(len(piece))] for row, piece in enumerate(pieces)]


class MaskedGroupNorm(nn.Module):
    """Group norm of one channel each over time, with statistics over the frames of each clip's own sound.

    Plain group norm counts the padding in: the last layer of HuBERT-base then differs by a third.
    """

    def __init__(self, norm: nn.GroupNorm, kernel: int, stride: int):
        super().__init__()
        self.norm, self.kernel, self.stride = norm, kernel, stride
        self.lengths: torch.Tensor | None = None

    def count_frames(self, samples: list[int], padded: int) -> None:
        """Set how many samples of each row of the coming batch are its own; `padded` is the batch's length."""
        counts = (torch.tensor(samples) - self.kernel) // self.stride + 1
        self.lengths = None if min(samples) == padded else counts

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, C, T) -> (B, C, T); what comes after a clip's own frames is not meant to be used."""
        if self.lengths is None:
            return self.norm(inputs)
        lengths = to_device(self.lengths, inputs.device)[:, None, None]
        own = torch.arange(inputs.shape[-1], device=inputs.device) < lengths
        mean = (inputs * own).sum(-1, keepdim=True, dtype=torch.float32) / lengths
        centred = inputs - mean
        variance = (centred * own).square().sum(-1, keepdim=True) / lengths
        scaled = centred * torch.rsqrt(variance + self.norm.eps)
        return (scaled * self.norm.weight[:, None] + self.norm.bias[:, None]).to(inputs.dtype)


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

    def prepare(self, wave: np.ndarray) -> tuple[torch.Tensor, list[int]]:
        """Log-mel windows (W, mels, 3000) of a wave (n,) at 16 kHz, and the frames of sound in each."""
        size = MOST_SECONDS * SAMPLE_RATE
        windows = [wave[start : start + size] for start in range(0, len(wave), size)]
        mels = [self.extractor(window, sampling_rate=SAMPLE_RATE, return_tensors="pt") for window in windows]
        return torch.cat([mel.input_features for mel in mels]), [-(-len(window) // 320) for window in windows]

    def cost(self, prepared: tuple[torch.Tensor, list[int]]) -> float:
        """Seconds of sound: every window costs 30."""
        return len(prepared[1]) * MOST_SECONDS

    def encode(self, waves: list[np.ndarray], keep: tuple[int, ...]) -> list[torch.Tensor]:
        """(L, T, D) for each wave (n,) at 16 kHz, 50 frames per second."""
        return self.encode_prepared([self.prepare(wave) for wave in waves], keep)

    @torch.inference_mode()
    def encode_prepared(self, waves: list[tuple[torch.Tensor, list[int]]], keep: tuple[int, ...]) -> list[torch.Tensor]:
        """(L, T, D) for each prepared wave."""
        with capture_hidden_states(self.blocks, keep) as found:
            self.model(to_device(torch.cat([mels for mels, _ in waves]), self.device).to(self.dtype))
        windows = iter(stack(found, keep).unbind(1))
        return [torch.cat([next(windows)[:, :count] for count in counts], dim=1) for _, counts in waves]


def pad(pieces: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Waves (n,) as one zero-padded batch (B, max n) and its attention mask."""
    lengths = torch.tensor([len(piece) for piece in pieces])
    padded = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    return padded, (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()


def _own_frames_norm(model: Any) -> MaskedGroupNorm:
    """Put an MaskedGroupNorm in the place of the model's group norm, which follows the first convolution."""
    layer = model.feature_extractor.conv_layers[0]
    layer.layer_norm = MaskedGroupNorm(layer.layer_norm, layer.conv.kernel_size[0], layer.conv.stride[0])
    return layer.layer_norm


def _normalises(folder: Path, default: bool) -> bool:
    try:
        return bool(AutoFeatureExtractor.from_pretrained(folder).do_normalize)
    except (OSError, ValueError, AttributeError):
        return default

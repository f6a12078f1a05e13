"""Encoders of waveforms: HuBERT, wav2vec 2.0, WavLM, data2vec-audio and others that AutoModel loads.

The models of MASKABLE_TYPES are padded with an attention mask, those with group norm over time get statistics over the
valid frames of each clip. Padding would leak into the others: data2vec stacks its positional convolutions, and some
HuBERTs (mHuBERT-147) have batch norm before theirs. Their forward passes take clips of equal length only. Whether a
model is one of these is read off its layers, and tested at load.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from mertool.devices import to_device
from mertool.encoders.base import MAX_WINDOW_SECONDS, Encoder
from mertool.encoders.batch_invariance import find_norm_over_time, forward_passes, is_batch_invariant
from mertool.encoders.families._wav2vec2_adaptable import AdaptableWav2Vec2
from mertool.encoders.hidden_states import capture_hidden_states, remove_weight_norm, stack_layers
from mertool.encoders.masked_group_norm import MaskedGroupNorm
from mertool.encoders.pretrained import load_config, load_feature_extractor, load_pretrained
from mertool.encoders.windows import MERTOOLS_SECONDS, MERTOOLS_WINDOW
from mertool.errors import ClipError
from mertool.features import SAMPLE_RATE

MODALITY = "audio"
MODEL_TYPES = ("hubert", "wav2vec2", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio")
OTHER_TYPES = True
MASKABLE_TYPES = ("hubert", "wav2vec2", "wavlm", "unispeech", "unispeech-sat")
TEST_SECONDS = (
    0.1,
    0.2,
)  # lengths of the two waveforms that are encoded at load, to see whether padding changes values


def load(folder: Path, *, device: torch.device, dtype: torch.dtype) -> "Wav2Vec2FamilyEncoder":
    """Load the encoder in `folder`; raises ValueError if it does not take a waveform."""
    config = load_config(folder)
    # Masking and layer drop are switched on by our training only, also when the model is in training mode.
    for name, value in {"apply_spec_augment": False, "layerdrop": 0.0}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    # In float32 at first, so that weight norm is computed before the weights are rounded.
    model = load_pretrained(AutoModel, folder, device=device, dtype=torch.float32, config=config)
    if not hasattr(model, "_get_feat_extract_output_lengths"):
        raise ValueError(f"{config.model_type} does not take a waveform")
    remove_weight_norm(model)
    has_layer_norm = getattr(config, "feat_extract_norm", "") == "layer"
    is_maskable = config.model_type in MASKABLE_TYPES
    encoder = Wav2Vec2FamilyEncoder(
        model,
        device=device,
        masked_norm=_mask_group_norm(model) if is_maskable and not has_layer_norm else None,
        do_normalize=_do_normalize(folder, default=is_maskable and has_layer_norm),
    )
    encoder.supports_padding = is_maskable and find_norm_over_time(model) is None and _is_batch_invariant(encoder)
    encoder.convert(dtype)
    return encoder


class Wav2Vec2FamilyEncoder(Encoder):
    """A convolutional front end on the waveform, and a transformer on its frames (20 ms each).

    supports_padding: whether clips of different lengths may share a forward pass.
    masked_norm: the group norm of the front end, to be told the lengths of each batch; None without group norm.
    do_normalize: whether the model was trained on waveforms of zero mean and unit variance.
    dtype: of the weights, float32 until `convert` changes it.
    """

    def __init__(self, model: Any, *, device: torch.device, masked_norm: MaskedGroupNorm | None, do_normalize: bool):
        config = model.config
        super().__init__(
            model, num_layers=int(config.num_hidden_layers), channels=int(config.hidden_size), device=device
        )
        self.masked_norm, self.do_normalize = masked_norm, do_normalize
        self.supports_padding, self.dtype = True, torch.float32

    def convert(self, dtype: torch.dtype) -> None:
        """Round the weights to `dtype`, in which the model then computes."""
        self.model.to(dtype)
        self.dtype = dtype

    def num_frames(self, samples: int) -> int:
        """Return the number of frames (20 ms each) of a waveform of that many samples."""
        return int(self.model._get_feat_extract_output_lengths(samples))

    def normalize_waveform(self, waveform: np.ndarray) -> torch.Tensor:
        """Return a waveform (n,) as the model was trained on it: with zero mean and unit variance, or unchanged."""
        samples = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
        if self.do_normalize:
            samples = (samples - samples.mean()) / torch.sqrt(samples.var(unbiased=False) + 1e-7)
        return samples

    def set_window(self, window: str) -> None:
        """Choose MERTOOLS_WINDOW in the place of the equal windows of `prepare`."""
        if window == MERTOOLS_WINDOW:
            self.window = window
        else:
            super().set_window(window)

    def prepare(self, item: np.ndarray) -> list[torch.Tensor]:
        """Cut a waveform (n,) at 16 kHz into equal windows of at most 30 s, or as MERTools does into chunks of 10 s.

        Raises ClipError too_short.
        """
        if self.num_frames(len(item)) < 1:
            raise ClipError("too_short", f"{len(item)} samples are too few for one frame")
        # Normalised before it is cut, so that loud and quiet windows keep their difference.
        samples = self.normalize_waveform(item)
        if self.window == MERTOOLS_WINDOW:
            return _zero_padded_chunks(samples, MERTOOLS_SECONDS * SAMPLE_RATE)
        return list(samples.tensor_split(-(-len(item) // (MAX_WINDOW_SECONDS * SAMPLE_RATE))))

    def cost(self, prepared: list[torch.Tensor]) -> float:
        """Return seconds of audio."""
        return sum(map(len, prepared)) / SAMPLE_RATE

    def encode_prepared(self, prepared: Sequence[list[torch.Tensor]], layers: Sequence[int]) -> list[torch.Tensor]:
        """Return (L, T, D) for each prepared clip, its windows end to end."""
        encoded = iter(self._encode_windows([window for windows in prepared for window in windows], layers))
        return [torch.cat([next(encoded) for _ in windows], dim=1) for windows in prepared]

    def _encode_windows(self, windows: list[torch.Tensor], layers: Sequence[int]) -> list[torch.Tensor]:
        """Return (L, T, D) for each window, in as many forward passes as their lengths and the device need."""
        states: dict[int, torch.Tensor] = {}
        seconds = [len(window) / SAMPLE_RATE for window in windows]
        for indices in forward_passes(seconds, device_type=self.device.type, supports_padding=self.supports_padding):
            batch = self._forward([windows[index] for index in indices], layers)
            states.update(zip(indices, batch, strict=True))
        return [states[index] for index in range(len(windows))]

    def adaptable(self) -> AdaptableWav2Vec2:
        """Return the model as adaptation runs it."""
        return AdaptableWav2Vec2(self)

    @torch.inference_mode()
    def _forward(self, windows: list[torch.Tensor], layers: Sequence[int]) -> list[torch.Tensor]:
        padded, mask = pad_waveforms(windows)
        options = {} if mask.all() else {"attention_mask": to_device(mask, self.device)}
        if self.masked_norm is not None:
            self.masked_norm.set_lengths([len(window) for window in windows], padded.shape[1])
        try:
            with capture_hidden_states(self.blocks, layers) as states:
                self.model(to_device(padded, self.device).to(self.dtype), **options)
        finally:
            if self.masked_norm is not None:
                self.masked_norm.lengths = None  # training calls the front end by itself, on clips of other lengths
        if self.window == MERTOOLS_WINDOW and self.num_layers in states and self._has_final_norm:
            # The scripts read `hidden_states` of transformers 4, whose last one has passed the final LayerNorm.
            states[self.num_layers] = self.model.encoder.layer_norm(states[self.num_layers])
        stacked = stack_layers(states, layers)
        return [stacked[:, row, : self.num_frames(len(window))] for row, window in enumerate(windows)]

    @property
    def _has_final_norm(self) -> bool:
        """Whether a LayerNorm follows the last block; in models of the other form it comes before the first one."""
        return bool(getattr(self.model.config, "do_stable_layer_norm", False))


def _zero_padded_chunks(samples: torch.Tensor, length: int) -> list[torch.Tensor]:
    """Cut samples (n,) into chunks of `length`, the last one filled up with zeros; shorter samples stay as they are."""
    if len(samples) <= length:
        return [samples]
    return list(torch.nn.functional.pad(samples, (0, -len(samples) % length)).split(length))


def pad_waveforms(waveforms: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad waveforms (n,) with zeros to one batch (B, max n), and return it with its attention mask."""
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    return padded, (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()


def _mask_group_norm(model: Any) -> MaskedGroupNorm:
    """Replace the model's group norm, which follows the first convolution, by one that ignores padding."""
    layer = model.feature_extractor.conv_layers[0]
    layer.layer_norm = MaskedGroupNorm(layer.layer_norm, layer.conv.kernel_size[0], layer.conv.stride[0])
    return layer.layer_norm


def _is_batch_invariant(encoder: Wav2Vec2FamilyEncoder) -> bool:
    """Return True if padding does not change the hidden states of noise; tested in float32, where rounding is small."""
    generator = np.random.default_rng(0)
    waves = [generator.normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32) for seconds in TEST_SECONDS]
    shorter, longer = map(encoder.prepare, waves)
    return is_batch_invariant(encoder, shorter, longer, dtype=torch.float32)


def _do_normalize(folder: Path, *, default: bool) -> bool:
    try:
        return bool(load_feature_extractor(folder).do_normalize)
    except (OSError, ValueError, AttributeError):  # there is none, or one of another kind
        return default

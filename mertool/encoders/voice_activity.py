"""Voice activity detection with silero-vad (Silero Team, MIT licence), whose weights are inside its package.

Of the files in the package only the safetensors are read, which hold tensors and no code; the others are TorchScript
programs or need onnxruntime. The package is not imported either, because that sets torch to one thread. The network is
the one of its `tinygrad_model.py`: a short-time Fourier transform, four convolutions and an LSTM over frames of 32 ms.
"""

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from mertool.encoders.recognition import INSTALL, find_vad_weights
from mertool.errors import MertoolError

FRAME, CONTEXT, PADDING = 512, 64, 64  # samples at 16 kHz; each frame is read with the end of the one before
FREQUENCIES = 129
# At the package's threshold of 0.5, ten of RAVDESS's 1,440 clips are missed, at this one four.
# Signals without speech stay below 0.12. `tests/bench/asr.py RAVDESS --vad-only` prints such figures.
SPEECH_PROBABILITY = 0.25
SPEECH_FRAMES = 6  # 0.19 s, a short word; the onset of a tone of 300 Hz passes for speech during three
# The network hears nothing in speech below about -60 dB of full scale, so every waveform is brought to this level.
LEVEL = 0.1


class VoiceActivity(nn.Module):
    """The network that tells the probability of speech in every frame of a waveform at 16 kHz."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * FREQUENCIES, kernel_size=256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(FREQUENCIES, 128, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, kernel_size=3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, kernel_size=3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, kernel_size=3, padding=1)
        self.lstm_cell = nn.LSTM(128, 128)
        self.final_conv = nn.Conv1d(128, 1, kernel_size=1)

    @classmethod
    def load(cls) -> "VoiceActivity":
        """Load the weights of silero-vad; raises MertoolError if it is not installed, or has another network."""
        weights = find_vad_weights()
        if weights is None:
            raise MertoolError(f"silero-vad is not installed: {INSTALL}, or give --no-vad")
        network = cls().eval()
        try:
            state = load_file(weights)
            # A cell's weights are those of a layer, under another name.
            state = {name.replace("_ih", "_ih_l0").replace("_hh", "_hh_l0"): value for name, value in state.items()}
            network.load_state_dict(state)
        except Exception as error:  # safetensors and torch raise several kinds for a damaged or another file
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MertoolError(
                f"{weights} is not the network that mertool knows ({reason}): {INSTALL} again, or give --no-vad"
            ) from error
        return network

    @torch.inference_mode()
    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return the probability (T,) of speech in each frame of a waveform (n,) float32 at 16 kHz."""
        missing = -len(waveform) % FRAME
        frames = F.pad(waveform, (CONTEXT, missing)).unfold(0, CONTEXT + FRAME, FRAME)
        transformed = self.stft_conv(F.pad(frames[:, None], (0, PADDING), "reflect"))
        hidden = (transformed[:, :FREQUENCIES] ** 2 + transformed[:, FREQUENCIES:] ** 2).sqrt()
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            hidden = convolution(hidden).relu()
        states, _ = self.lstm_cell(hidden.squeeze(-1))
        return self.final_conv(states.relu()[..., None]).sigmoid().flatten()

    def has_speech(self, waveform: np.ndarray) -> bool:
        """Return True if a waveform (n,) float32 at 16 kHz has speech in it, or is not finite."""
        if not np.isfinite(waveform).all():
            return True  # what the recogniser makes of it is recorded as not finite
        return self.speech_probability(waveform) >= SPEECH_PROBABILITY

    def speech_probability(self, waveform: np.ndarray) -> float:
        """Return the probability that SPEECH_FRAMES frames of a waveform (n,) float32 at 16 kHz reach.

        Of a shorter waveform all frames have to reach it; one that does not move has 0.
        """
        level = float(waveform.std(dtype=np.float64))
        if level == 0:
            return 0.0
        scaled = (waveform - waveform.mean(dtype=np.float64)) * (LEVEL / level)
        probabilities = self(torch.from_numpy(scaled.astype(np.float32)))
        return float(probabilities.topk(min(SPEECH_FRAMES, len(probabilities))).values[-1])

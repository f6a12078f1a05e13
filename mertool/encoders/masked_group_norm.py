"""Group norm over time that ignores padding."""

import torch
from torch import nn

from mertool.devices import to_device


class MaskedGroupNorm(nn.Module):
    """Group norm over time with one channel per group, with statistics over the valid frames of each clip.

    Plain group norm includes the padding in its statistics, which changes the last layer of HuBERT-base by a third.

    norm: the layer that is replaced, with its weight and bias (C,).
    kernel, stride: of the convolution before it, in samples of the waveform.
    lengths: valid frames of each clip (B,) of the coming batch; None if no clip is padded.
    """

    def __init__(self, norm: nn.GroupNorm, kernel: int, stride: int):
        super().__init__()
        self.norm, self.kernel, self.stride = norm, kernel, stride
        self.lengths: torch.Tensor | None = None

    def set_lengths(self, samples: list[int], padded: int) -> None:
        """Set the valid samples of each clip of the coming batch; `padded` is the length of the batch in samples."""
        frames = (torch.tensor(samples) - self.kernel) // self.stride + 1
        self.lengths = None if min(samples) == padded else frames

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, C, T) -> (B, C, T); the outputs after a clip's valid frames have no meaning."""
        if self.lengths is None:
            return self.norm(inputs)
        lengths = to_device(self.lengths, inputs.device)[:, None, None]
        valid = torch.arange(inputs.shape[-1], device=inputs.device) < lengths
        mean = (inputs * valid).sum(-1, keepdim=True, dtype=torch.float32) / lengths
        centred = inputs - mean
        variance = (centred * valid).square().sum(-1, keepdim=True) / lengths
        scaled = centred * torch.rsqrt(variance + self.norm.eps)
        return (scaled * self.norm.weight[:, None] + self.norm.bias[:, None]).to(inputs.dtype)

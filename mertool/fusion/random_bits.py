"""Random numbers of one stack of members: many and cheap, the same for the same seed whatever else runs."""

import numpy as np
import torch


class Noise:
    """On a CPU from numpy's SFC64, of which sixteen bits decide one value: a dozen times faster than torch's there."""

    def __init__(self, seed: list[int], device: torch.device):
        self.device = device
        self._bits = np.random.Generator(np.random.SFC64(seed))
        self._generator = torch.Generator(device).manual_seed(int(self._bits.integers(2**62)))

    def bits(self, shape: torch.Size) -> torch.Tensor:
        """Sixteen random bits each, int16, on the CPU."""
        count = shape.numel()
        words = self._bits.integers(2**64, size=(count + 3) // 4, dtype=np.uint64)
        return torch.from_numpy(words.view(np.int16)[:count]).view(shape)

    def uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        """From 0 to below 1, float32."""
        return torch.rand(shape, generator=self._generator, device=self.device)

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normal, float32."""
        if self.device.type == "cpu":
            return torch.from_numpy(self._bits.standard_normal(shape, np.float32))
        return torch.randn(shape, generator=self._generator, device=self.device)

    def beta(self, strength: float, shape: tuple[int, ...]) -> torch.Tensor:
        """Beta(strength, strength), float32."""
        return torch.from_numpy(self._bits.beta(strength, strength, shape).astype(np.float32)).to(self.device)


class Factors:
    """Dropout's factors for M members with rates (M,): zero, or one over the share kept, in the shape (M, ...)."""

    def __init__(self, noise: Noise, rates: list[float]):
        self.noise = noise
        rate = torch.tensor(rates, device=noise.device)
        self._scale = 1 / (1 - rate)
        self._rate = rate
        self._threshold = (rate * 2**16 - 2**15).round().to(torch.int16)

    def __call__(self, shape: torch.Size) -> torch.Tensor:
        members = (-1, *[1] * (len(shape) - 1))
        if self.noise.device.type == "cpu":
            kept = torch.ge(self.noise.bits(shape), self._threshold.view(members), out=torch.empty(shape))
        else:
            kept = (self.noise.uniform(shape) >= self._rate.view(members)).float()
        return kept.mul_(self._scale.view(members))

"""Standardisation by each training part's own clips, without a copy of the features for each."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StandardizedFeatures:
    """Features of B layers, and what standardises them by K training parts.

    `x` (B, N, D) is roughly standardised, for its numbers alone: `(x - centre) * rate`, with `centre`
    and `rate` (B, K, D), is the raw feature standardised by the clips of one part, whatever the others are.
    `middle` and `spread` (B, D) lead back to the raw features.
    """

    x: torch.Tensor
    centre: torch.Tensor
    rate: torch.Tensor
    middle: torch.Tensor
    spread: torch.Tensor

    def fold_in(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (B, K, C, D) and biases (B, K, C) for standardised features, as they apply to `x`."""
        scaled = weight * self.rate[:, :, None]
        return scaled, bias - (scaled @ self.centre[..., None])[..., 0]

    def pick(self, layers: torch.Tensor, parts: torch.Tensor) -> "StandardizedFeatures":
        """The same of some layers (B',), with `parts` (B', K') of the training parts of each."""
        rows, every = layers[:, None], len(layers) == len(self.x)
        x, middle, spread = (kept if every else kept[layers] for kept in (self.x, self.middle, self.spread))
        return StandardizedFeatures(x, self.centre[rows, parts], self.rate[rows, parts], middle, spread)


def scale(features: torch.Tensor, trains: torch.Tensor) -> StandardizedFeatures:
    """Standardise features (B, N, D) for the training parts that `trains` (K, N) marks with 1."""
    x, middle, spread = condition(features)
    share = trains / trains.sum(1, keepdim=True)
    centre = share @ x
    rate = deviation_of(share @ x.square() - centre.square(), centre).reciprocal()
    return StandardizedFeatures(x, centre, rate, middle, spread)


def condition(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (B, N, D) about 0 and of size 1, so that float32 sums keep their digits; middle and spread (B, D).

    By medians of some clips, so that a single clip far off does not press the others together.
    """
    some = features[:, :: max(1, features.shape[1] // 256)]
    middle = some.median(1).values
    x = features - middle[:, None]
    spread = 1.5 * x[:, :: max(1, features.shape[1] // 256)].abs().median(1).values
    spread = torch.where(spread > 0, spread, x.square().mean(1).sqrt())
    # A channel that is constant up to rounding carries nothing.
    spread = torch.where(spread > 1e-6 * middle.abs(), spread, torch.ones_like(spread))
    x /= spread[:, None]
    return x, middle, spread


def deviation_of(variance: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Square root; 1 for a channel that is constant up to rounding, which stays as it is."""
    varies = variance > 1e-10 + 1e-6 * mean.square()
    return torch.where(varies, variance, torch.ones_like(variance)).sqrt()

"""Standardisation by each training set's own clips, without a copy of the features for each.

Shapes: B layers, N clips, D channels, K training sets, C classes.
"""

from dataclasses import dataclass

import torch

MAX_MEDIAN_CLIPS = 256  # medians of more clips would not be noticeably better


@dataclass(frozen=True, kw_only=True)
class StandardizedFeatures:
    """Features of several layers, and their standardisation by several training sets.

    Attributes:
        x: Robustly scaled features (B, N, D), equal to (raw - median) / mad. One copy serves all training sets.
        mean: Mean (B, K, D) of `x` over the clips of each training set.
        inv_std: Inverse standard deviation (B, K, D) of `x`; (x - mean) * inv_std is what scikit-learn's
            StandardScaler gives for the raw features.
        median: Median (B, D) of the raw features.
        mad: Scale (B, D) of the raw features, see `robust_scale`.
    """

    x: torch.Tensor
    mean: torch.Tensor
    inv_std: torch.Tensor
    median: torch.Tensor
    mad: torch.Tensor

    def fold_into_linear(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights (B, K, C, D) and biases (B, K, C) for `x` that equal the given ones after standardisation.

        W ((x - mean) * inv_std) + b = (W * inv_std) x + (b - (W * inv_std) mean).
        """
        scaled = weight * self.inv_std[:, :, None]
        return scaled, bias - (scaled @ self.mean[..., None])[..., 0]

    def select(self, layers: torch.Tensor, training_sets: torch.Tensor) -> "StandardizedFeatures":
        """Return the standardisation of some layers (B',), with the training sets (B', K') of each."""
        rows, all_layers = layers[:, None], len(layers) == len(self.x)  # indexing would copy the features
        return StandardizedFeatures(
            x=self.x if all_layers else self.x[layers],
            mean=self.mean[rows, training_sets],
            inv_std=self.inv_std[rows, training_sets],
            median=self.median if all_layers else self.median[layers],
            mad=self.mad if all_layers else self.mad[layers],
        )


def standardize(features: torch.Tensor, train_masks: torch.Tensor) -> StandardizedFeatures:
    """Standardise features (B, N, D) by each of the training sets that `train_masks` (K, N) marks with 1."""
    x, median, mad = robust_scale(features)
    weight = train_masks / train_masks.sum(1, keepdim=True)
    mean = weight @ x
    inv_std = safe_std(weight @ x.square() - mean.square(), mean).reciprocal()
    return StandardizedFeatures(x=x, mean=mean, inv_std=inv_std, median=median, mad=mad)


def robust_scale(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features (B, N, D) with about zero mean and unit variance, their median and their scale (both (B, D)).

    The scale is 1.5 times the median absolute deviation of some clips (1.4826 for a normal distribution), so that
    one outlier does not compress the other clips. The result does not depend on it except by rounding: sums of squares
    in float32 would lose the digits of channels whose mean is far from zero.
    """
    step = max(1, features.shape[1] // MAX_MEDIAN_CLIPS)
    median = features[:, ::step].median(1).values
    x = features - median[:, None]
    mad = 1.5 * x[:, ::step].abs().median(1).values
    mad = torch.where(mad > 0, mad, x.square().mean(1).sqrt())
    # Dividing a channel that is constant up to rounding would amplify the rounding.
    mad = torch.where(mad > 1e-6 * median.abs(), mad, torch.ones_like(mad))
    x /= mad[:, None]
    return x, median, mad


def safe_std(variance: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation, and 1 for a channel that is constant up to rounding."""
    varies = variance > 1e-10 + 1e-6 * mean.square()
    return torch.where(varies, variance, torch.ones_like(variance)).sqrt()

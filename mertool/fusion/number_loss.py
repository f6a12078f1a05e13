"""The loss of fusion heads that predict a number: mean squared error and 1 - CCC.

Both are of numbers that are standardised by the member's training clips. The concordance correlation coefficient is the
main score, and 1 - CCC its usual loss in speech emotion recognition (Atmaja and Akagi, 2021). It is noisy within small
batches, and does not change when a batch has one clip only; the squared error, which the baseline of MER2023 takes, is
the mean over clips of any batch.
"""

import torch

MIN_VARIANCE = 1e-6  # of a batch of equal predictions and numbers, of which CCC is 0 / 0


def number_losses(
    outputs: torch.Tensor, numbers: torch.Tensor, weights: torch.Tensor, *, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """Return the loss (M,) of each member; outputs (M, B, 1), numbers and weights (M, B), mean and std (M, 1)."""
    share = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
    predicted, true = (outputs[..., 0] - mean) / std, (numbers - mean) / std
    squared_error = (share * (predicted - true).square()).sum(1)
    return squared_error + 1 - _ccc(predicted, true, share)


def _ccc(predicted: torch.Tensor, true: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return the CCC (M,) of numbers (M, B), with weights (M, B) that sum to 1."""
    means = [(share * values).sum(1, keepdim=True) for values in (predicted, true)]
    deviations = [values - mean for values, mean in zip((predicted, true), means, strict=True)]
    variances = [(share * deviation.square()).sum(1) for deviation in deviations]
    covariance = (share * deviations[0] * deviations[1]).sum(1)
    shift = (means[0] - means[1])[:, 0].square()
    return 2 * covariance / (variances[0] + variances[1] + shift + MIN_VARIANCE)

"""Scores of predicted numbers, each a function of sums over clips, so that `significance` can leave speakers out.

For N clips with the true numbers t and the predicted ones p, deviations being those over N and not N - 1:

- CCC, the concordance correlation coefficient (Lin, 1989): 2 cov(t, p) / (var(t) + var(p) + (mean(t) - mean(p))^2).
- Pearson correlation, mean absolute error (MAE) and mean squared error (MSE).
- Of sentiment from -3 to 3 also the scores of MOSI and MOSEI, as MMSA computes them (thuiar/MMSA, metricsTop.py):
  Acc-7 and Acc-5 after clipping to [-3, 3] or [-2, 2] and rounding, halves to even. Acc-2 and weighted F1 either with
  zeros, non-negative against negative, or without clips whose truth is zero, positive against the rest.

A constant prediction has no correlation: CCC and Pearson are 0 for it, where scipy returns NaN.
"""

import numpy as np

from mertool.metrics import scores_from_confusion

# Columns of the sums: number of clips, t, p, t^2, p^2, t p, |t - p|, (t - p)^2.
N_MOMENTS = 8
N_SENTIMENT = 10  # Acc-7, Acc-5, and two confusion matrices of two classes
SENTIMENT_SCORES = ("acc2_with_zero", "f1_with_zero", "acc2_without_zero", "f1_without_zero", "acc5", "acc7")
CONSTANT = 1e-12  # variance, as a share of the mean square, that is rounding


def moments(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the values (..., N, N_MOMENTS) of each clip whose sums give the scores; truth (N,), predicted (..., N).

    Both are shifted by one number, which changes no score and keeps digits.
    """
    shift = truth.mean() if len(truth) else 0.0
    true, guess = np.broadcast_arrays((truth - shift).astype(np.float64), (predicted - shift).astype(np.float64))
    error = guess - true
    columns = [np.ones_like(true), true, guess, true**2, guess**2, true * guess, np.abs(error), error**2]
    return np.stack(columns, -1)


def sentiment_counts(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return 0 or 1 (..., N, N_SENTIMENT) of each clip: right of 7, of 5, and cells of the two confusion matrices."""
    truth, predicted = np.broadcast_arrays(truth, predicted)
    right = [_rounded(truth, end) == _rounded(predicted, end) for end in (3, 2)]
    with_zero = _cells(truth >= 0, predicted >= 0, np.ones_like(truth, bool))
    without_zero = _cells(truth > 0, predicted > 0, truth != 0)
    return np.stack([*right, *with_zero, *without_zero], -1).astype(np.float64)


def scores_from_moments(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Return CCC, Pearson, MAE and MSE (...,) from sums (..., N_MOMENTS or more)."""
    count = np.maximum(sums[..., 0], 1)
    true, guess, true2, guess2, product, absolute, squared = (sums[..., column] / count for column in range(1, 8))
    true_variance, guess_variance = _variance(true2, true), _variance(guess2, guess)
    covariance = np.where((true_variance > 0) & (guess_variance > 0), product - true * guess, 0.0)
    return {
        "ccc": _ratio(2 * covariance, true_variance + guess_variance + (true - guess) ** 2),
        "pearson": _ratio(covariance, np.sqrt(true_variance * guess_variance)),
        "mae": absolute,
        "mse": squared,
    }


def scores_from_sentiment_counts(sums: np.ndarray, count: np.ndarray) -> dict[str, np.ndarray]:
    """Return the accuracies and F1 (...,) of sentiment from sums (..., N_SENTIMENT) over `count` (...,) clips."""
    with_zero, without_zero = (
        scores_from_confusion(sums[..., cells].reshape(*sums.shape[:-1], 2, 2)) for cells in (slice(2, 6), slice(6, 10))
    )
    by_sign = [matrix[name] for matrix in (with_zero, without_zero) for name in ("accuracy", "waf")]
    shares = [sums[..., column] / np.maximum(count, 1) for column in (1, 0)]
    return dict(zip(SENTIMENT_SCORES, (*by_sign, *shares), strict=True))


def _rounded(values: np.ndarray, end: float) -> np.ndarray:
    return np.round(np.clip(values, -end, end))


def _cells(truth: np.ndarray, predicted: np.ndarray, counted: np.ndarray) -> list[np.ndarray]:
    """Return the four cells of a confusion matrix, rows are the truth, false first."""
    return [
        counted & (truth == is_true) & (predicted == is_predicted)
        for is_true in (False, True)
        for is_predicted in (False, True)
    ]


def _variance(mean_square: np.ndarray, mean: np.ndarray) -> np.ndarray:
    variance = mean_square - mean**2
    return np.where(variance > CONSTANT * mean_square, variance, 0.0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1.0), 0.0)

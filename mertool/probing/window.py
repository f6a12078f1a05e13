"""The window of adjacent layers to recommend, and its score on clips that had no part in the choice."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mertool.learning.folds import Folds
from mertool.probing.prediction_table import has_prediction
from mertool.significance import Measure
from mertool.targets import Target

MAX_SHARE = 1 / 3  # of the transformer layers, where mertool chooses the width


@dataclass(frozen=True)
class Window:
    """First and last layer of a window, and why it was chosen."""

    first: int
    last: int
    reason: str

    def positions_of(self, layers: Sequence[int]) -> list[int]:
        """Return the positions in `layers` of the layers in the window."""
        return [position for position, layer in enumerate(layers) if self.first <= layer <= self.last]


def max_width(n_blocks: int) -> int:
    """Return the number of layers of the widest window where mertool chooses the width."""
    return max(1, round(n_blocks * MAX_SHARE))


def choose_window(
    layers: Sequence[int], scores: np.ndarray, *, standard_errors: np.ndarray | None, width: int | None
) -> Window:
    """Choose a window by the score (L,) of each layer, weighted F1 or CCC; layer 0, the embedding, is never in it.

    With a `width` it is the window of that width with the highest mean. Otherwise it is the best layer and those
    neighbours that it beats by no more than one standard error of the difference (`standard_errors`, (L,)), at most a
    third of the layers.
    """
    if width is not None:
        first, last = _best_window(layers, scores, width)
        return Window(first, last, f"highest mean score of {width} neighbouring layers")
    blocks = [position for position, layer in enumerate(layers) if layer >= 1]
    best = max(blocks, key=lambda position: scores[position])
    assert standard_errors is not None
    is_close = scores[best] - scores <= standard_errors
    first = last = best
    while first - 1 in blocks and is_close[first - 1]:
        first -= 1
    while last + 1 in blocks and is_close[last + 1]:
        last += 1
    neighbours = "with the neighbours that are" if first < last else "no neighbour is"
    reason = f"the best layer, {layers[best]}, {neighbours} worse by at most one standard error of the difference"
    widest = max_width(len(blocks))
    if last - first + 1 > widest:
        starts = range(max(first, best - widest + 1), min(last - widest + 1, best) + 1)
        first = max(starts, key=lambda start: scores[start : start + widest].mean())
        last = first + widest - 1
        reason += f"; the best {widest} of these, a third of the layers"
    return Window(layers[first], layers[last], reason)


def choose_window_by_predictions(
    layers: Sequence[int],
    labels: np.ndarray,
    predicted: np.ndarray,
    *,
    measure: Measure,
    width: int | None,
    groups: np.ndarray | None,
) -> Window:
    """Choose a window by classes or numbers (S, L, N) that probes predicted for clips with labels (N,).

    The standard errors are those of differences on the same clips. So they do not grow with what makes clips or the
    speakers `groups` (N,) easier or harder for all layers alike.
    """
    scores = measure.main_score(labels, predicted).mean(0)
    if width is not None:
        return choose_window(layers, scores, standard_errors=None, width=width)
    blocks = [position for position, layer in enumerate(layers) if layer >= 1]
    best = max(blocks, key=lambda position: scores[position])
    errors = measure.difference_errors(labels, predicted, best, groups=groups)
    return choose_window(layers, scores, standard_errors=errors, width=None)


def choose_nested_windows(
    layers: Sequence[int],
    labels: np.ndarray,
    folds: Folds,
    *,
    inner: np.ndarray,
    outer: np.ndarray,
    measure: Measure,
    width: int | None,
    groups: np.ndarray | None,
) -> list[Window]:
    """Choose the window of each outer fold without the fold's clips.

    `inner` (F, L, N) are predictions for each outer fold by probes that were trained on neither it nor the clip's own
    fold. With two folds there are none, and the predictions `outer` (L, N) for the other fold are used.
    """
    windows = []
    for fold in range(folds.count):
        rows, predicted = np.flatnonzero(has_prediction(inner[fold, 0])), inner[fold]
        if len(rows) == 0:
            rows, predicted = folds.train(fold), outer
        window = choose_window_by_predictions(
            layers,
            labels[rows],
            predicted[None][:, :, rows],
            measure=measure,
            width=width,
            groups=None if groups is None else groups[rows],
        )
        windows.append(window)
    return windows


def predict_by_windows(
    layers: Sequence[int],
    folds: Folds,
    outputs: np.ndarray,
    *,
    windows: Sequence[Window],
    estimator: str,
    target: Target,
) -> np.ndarray:
    """Return the class or number (N,) of each clip by the mean over its fold's window, from outputs (L, N, C).

    The mean is of probabilities, or for ridge, which has none, of decision values or numbers.
    """
    scores = outputs
    if estimator == "logistic":
        shifted = np.exp(outputs - outputs.max(-1, keepdims=True))
        scores = shifted / shifted.sum(-1, keepdims=True)
    means = np.zeros(outputs.shape[1:], outputs.dtype)
    for fold, window in enumerate(windows):
        rows = folds.held_out(fold)
        means[rows] = scores[window.positions_of(layers)][:, rows].mean(0)
    return target.decide(means)


def _best_window(layers: Sequence[int], scores: np.ndarray, width: int) -> tuple[int, int]:
    """Return the first and last of the `width` adjacent transformer layers with the highest mean score."""
    blocks = [(layer, score) for layer, score in zip(layers, scores, strict=True) if layer >= 1]
    means = [np.mean([score for _, score in blocks[i : i + width]]) for i in range(len(blocks) - width + 1)]
    start = int(np.argmax(means))
    return blocks[start][0], blocks[start + width - 1][0]

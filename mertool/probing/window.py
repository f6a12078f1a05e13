"""Which neighbouring layers to recommend, and how good a window so chosen is on clips that did not choose it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mertool.learning.folds import Folds
from mertool.metrics import confusion_matrix, score, scores_from_confusion

MOST_SHARE = 3  # a window that mertool sizes holds at most one third of the layers


@dataclass(frozen=True)
class Window:
    """First and last layer, and why."""

    first: int
    last: int
    reason: str

    def holds(self, layers: Sequence[int]) -> list[int]:
        """Positions in `layers` that are inside."""
        return [place for place, layer in enumerate(layers) if self.first <= layer <= self.last]


def choose_window(layers: Sequence[int], wafs: np.ndarray, error: float, width: int | None) -> Window:
    """The window by weighted F1 (L,): of a given width, or the best layer and its neighbours within one `error`.

    `error` is the standard error of the best layer's score. Layer 0, the embedding, is never in it.
    """
    if width is not None:
        first, last = best_window(layers, wafs, width)
        return Window(first, last, f"highest mean weighted F1 of {width} neighbouring layers")
    places = [place for place, layer in enumerate(layers) if layer >= 1]
    best = max(places, key=lambda place: wafs[place])
    near = [best]
    while near[0] - 1 in places and wafs[near[0] - 1] >= wafs[best] - error:
        near.insert(0, near[0] - 1)
    while near[-1] + 1 in places and wafs[near[-1] + 1] >= wafs[best] - error:
        near.append(near[-1] + 1)
    who = "with the neighbours" if len(near) > 1 else "no neighbour is"
    reason = f"the best layer, {layers[best]}, {who} within one standard error ({100 * error:.1f} points) of it"
    most = max(1, round(len(places) / MOST_SHARE))
    if len(near) > most:
        starts = range(max(near[0], best - most + 1), min(near[-1] - most + 1, best) + 1)
        start = max(starts, key=lambda place: wafs[place : place + most].mean())
        near = list(range(start, start + most))
        reason += f"; the best {most} of these, a third of the layers"
    return Window(layers[near[0]], layers[near[-1]], reason)


def best_window(layers: Sequence[int], wafs: np.ndarray, width: int) -> tuple[int, int]:
    """First and last of the `width` neighbouring transformer layers with the highest mean WAF."""
    blocks = [(layer, waf) for layer, waf in zip(layers, wafs, strict=True) if layer >= 1]
    means = [np.mean([waf for _, waf in blocks[i : i + width]]) for i in range(len(blocks) - width + 1)]
    start = int(np.argmax(means))
    return blocks[start][0], blocks[start + width - 1][0]


def choose_by_guess(
    layers: Sequence[int],
    labels: np.ndarray,
    guess: np.ndarray,
    classes: int,
    width: int | None,
    groups: np.ndarray | None,
    seed: int,
) -> Window:
    """The window by what probes guessed, (S, L, N), of clips with `labels` (N,)."""
    truth = np.broadcast_to(labels, guess.shape)
    wafs = scores_from_confusion(confusion_matrix(truth, guess, classes))["waf"].mean(0)
    error = 0.0
    if width is None:
        best = max((place for place, layer in enumerate(layers) if layer >= 1), key=lambda place: wafs[place])
        interval = score(labels, guess[:, best], classes, seed=seed, groups=groups)["waf"]
        error = (interval.high - interval.low) / (2 * 1.96)
    return choose_window(layers, wafs, error, width)


def nested_windows(
    layers: Sequence[int],
    labels: np.ndarray,
    folds: Folds,
    inner: np.ndarray,
    outer: np.ndarray,
    classes: int,
    width: int | None,
    groups: np.ndarray | None,
    seed: int,
) -> list[Window]:
    """The window of each outer fold, chosen by `inner` guesses (F, L, N) that saw neither it nor the clips they are of.

    With two folds there are none (-1 everywhere); `outer` guesses (L, N) of the other fold choose then.
    """
    found = []
    for fold in range(folds.count):
        rows = np.flatnonzero(inner[fold, 0] >= 0)
        guess = inner[fold]
        if len(rows) == 0:
            rows, guess = folds.train(fold), outer
        some = None if groups is None or len(np.unique(groups[rows])) < 2 else groups[rows]
        found.append(choose_by_guess(layers, labels[rows], guess[None][:, :, rows], classes, width, some, seed))
    return found


def window_guess(
    layers: Sequence[int], folds: Folds, logits: np.ndarray, windows: Sequence[Window], estimator: str
) -> np.ndarray:
    """Class (N,) of each clip by the mean over its fold's window: of probabilities, or of ridge's decision values."""
    if estimator == "logistic":
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        logits = shifted / shifted.sum(-1, keepdims=True)
    guess = np.zeros(logits.shape[1], np.int64)
    for fold, window in enumerate(windows):
        rows = folds.held_out(fold)
        guess[rows] = logits[window.holds(layers)][:, rows].mean(0).argmax(-1)
    return guess

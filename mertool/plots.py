"""The pictures of the stages, each as PNG and SVG, drawn without a screen."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from mertool.files import write_atomic

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
Bars = dict[str, tuple[float, float, float]]  # name -> value, low, high


def layer_curve(path: Path, layers: list[int], scores: Bars, window: tuple[int, int], chance: float) -> None:
    """Weighted F1 by layer with intervals, the recommended window shaded, chance dashed."""
    values = np.array([scores[str(layer)] for layer in layers]) * 100
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.axvspan(window[0] - 0.5, window[1] + 0.5, color=ORANGE, alpha=0.15, lw=0, label="recommended window")
    axes.fill_between(layers, values[:, 1], values[:, 2], color=BLUE, alpha=0.2, lw=0, label="95 % interval")
    axes.plot(layers, values[:, 0], "o-", color=BLUE, label="linear probe")
    axes.axhline(100 * chance, color=GREY, ls="--", label="chance (shuffled labels)")
    axes.set(xlabel="layer (0 = embedding)", ylabel="weighted F1, %", title="What each layer knows of emotion")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)
    _save(figure, path)


def score_bars(path: Path, scores: Bars, title: str, chance: float | None = None) -> None:
    """One horizontal bar per system with its interval."""
    names = list(scores)
    values = np.array([scores[name] for name in names]) * 100
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.45 * len(names)), layout="constrained")
    errors = np.abs(values[:, 1:] - values[:, :1]).T
    axes.barh(names, values[:, 0], xerr=errors, color=BLUE, height=0.6, error_kw={"capsize": 3, "lw": 1})
    if chance is not None:
        axes.axvline(100 * chance, color=GREY, ls="--", label="always the largest class")
        axes.legend(fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="weighted F1, % (bars: 95 % interval)", title=title, xlim=(0, 100))
    _save(figure, path)


def confusion_matrix(path: Path, matrix: np.ndarray, classes: tuple[str, ...]) -> None:
    """Share of each true class (row) by predicted class (column), the number of clips written in."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(1.6 + 0.7 * len(classes), 1.1 + 0.65 * len(classes)), layout="constrained")
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(int(matrix[row, column])), ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix (clips)")
    figure.colorbar(picture, label="share of the true class", shrink=0.8)
    _save(figure, path)


def curves(path: Path, series: dict[str, list[float]], ylabel: str, title: str) -> None:
    """Lines over epochs."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, values in series.items():
        axes.plot(range(1, len(values) + 1), values, label=name)
    axes.set(xlabel="epoch", ylabel=ylabel, title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    import io

    for suffix in (".png", ".svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=130)
        write_atomic(path.with_suffix(suffix), buffer.getvalue())
    plt.close(figure)

"""The pictures of the stages, each as PNG and SVG, drawn without a screen."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from mertool.files import write_atomic

# The ids inside an SVG are random without a salt, but the same run must give the same file.
matplotlib.rcParams["svg.hashsalt"] = "mertool"
matplotlib.rcParams["text.parse_math"] = False  # names of files and classes may hold dollar signs
BLUE, ORANGE, GREY, YELLOW = "#0072B2", "#D55E00", "#999999", "#F0C000"
MOST_TICKS = 26
TITLE_WIDTH = 48  # characters
Score = tuple[float, float | None, float | None]  # value, low, high; the bounds are None without an interval
Bars = dict[str, Score]


def plot_layer_scores(
    path: Path,
    layers: list[int],
    scores: Bars,
    *,
    window: tuple[int, int] | None,
    chance: float | Bars,
    mlp: Bars | None = None,
    interval: str = "95 % intervals",
    number: str = "",
) -> None:
    """Weighted F1 by layer with intervals, the recommended window (if any) shaded, shuffled labels dashed.

    `chance` is one value or, as `mlp`, has one for each layer. The scores of a `number` are CCC.
    """
    factor = 1 if number else 100
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    if window:
        axes.axvspan(window[0] - 0.5, window[1] + 0.5, color=YELLOW, alpha=0.25, lw=0, label="recommended window")
    heads = [("linear probe", scores, "o-", BLUE, -0.08 if mlp else 0)]
    heads += [("small MLP", mlp, "s--", ORANGE, 0.08)] if mlp else []
    for name, bars, style, colour, shift in heads:
        values = [bars[str(layer)] for layer in layers]
        x = np.array(layers) + shift
        _draw_curve(axes, x, values, style=style, colour=colour, label=name, factor=factor)
    if isinstance(chance, dict):
        floor = _percent([chance[str(layer)] for layer in layers], factor)
        axes.fill_between(layers, floor[:, 1], floor[:, 2], color=GREY, alpha=0.2, lw=0)
        axes.plot(layers, floor[:, 0], ".:", color=GREY, label="chance (shuffled labels)")
    else:
        axes.axhline(factor * chance, color=GREY, ls="--", label="chance (shuffled labels)")
    axes.set(
        xlabel="layer (0 = embedding)", ylabel=f"{f'CCC of {number}' if number else 'weighted F1, %'} ({interval})"
    )
    axes.set_title(f"What each layer knows of {number or 'emotion'}")
    axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)
    _tick_layers(axes, layers)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, path)


def plot_recall_by_layer(
    path: Path, layers: list[int], recall: dict[str, dict[str, float]], *, window: tuple[int, int] | None
) -> None:
    """Recall of each class (rows) by layer, written in where there is room; the window, if any, is framed."""
    classes = list(recall[str(layers[0])])
    shares = np.array([[recall[str(layer)][name] for layer in layers] for name in classes]) * 100
    figure, axes = plt.subplots(
        figsize=(2.4 + 0.34 * max(len(layers), 8), 1.5 + 0.38 * len(classes)), layout="constrained"
    )
    picture = axes.imshow(shares, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(shares.shape):
        colour = "black" if shares[row, column] > 60 else "white"
        axes.text(column, row, f"{int(shares[row, column] + 0.5)}", ha="center", va="center", color=colour, fontsize=7)
    xlabel = "layer (0 = embedding)"
    if window:
        inside = [column for column, layer in enumerate(layers) if window[0] <= layer <= window[1]]
        corner, size = (inside[0] - 0.5, -0.5), (len(inside), len(classes))
        axes.add_patch(plt.Rectangle(corner, *size, fill=False, ec=ORANGE, lw=2.5, clip_on=False, label="window"))
        xlabel = "layer (0 = embedding; framed: recommended window)"
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers], fontsize=8)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel=xlabel, title="Recall of each class by layer, %")
    figure.colorbar(picture, label="recall, %")
    _save(figure, path)


def plot_score_bars(
    path: Path,
    scores: Bars,
    *,
    title: str,
    chance: float | None = None,
    interval: str = "95 % interval",
    number: str = "",
) -> None:
    """Draw a horizontal bar for each system with its interval; `interval` says what that is.

    The scores are weighted F1, or CCC of a `number`.
    """
    names = list(scores)
    values = _percent([scores[name] for name in names], 1 if number else 100)
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.45 * len(names)), layout="constrained")
    errors = np.abs(values[:, 1:] - values[:, :1]).T
    axes.barh(names, values[:, 0], xerr=errors, color=BLUE, height=0.6, error_kw={"capsize": 3, "lw": 1})
    if chance is not None:
        axes.axvline(100 * chance, color=GREY, ls="--", label="always the largest class")
        axes.legend(fontsize=8)
    axes.invert_yaxis()
    score, limits = (
        (f"CCC of {number}", (min(0.0, float(np.nanmin(values))), 1.0)) if number else ("weighted F1, %", (0, 100))
    )
    axes.set(xlabel=f"{score}{_legend_of_bars(values, interval)}", title=title, xlim=limits)
    _save(figure, path)


def plot_numbers(path: Path, truth: np.ndarray, predicted: np.ndarray, *, name: str) -> None:
    """Predicted by true numbers (N,), a point for each clip."""
    figure, axes = plt.subplots(figsize=(4.8, 4.8), layout="constrained")
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    axes.plot(ends, ends, "--", color=GREY, lw=1, label="equal")
    axes.plot(truth, predicted, ".", color=BLUE, ms=4, alpha=0.5)
    axes.set(xlabel=f"true {name}", ylabel=f"predicted {name}", title="Held-out clips")
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_confusion_matrix(path: Path, matrix: np.ndarray, classes: tuple[str, ...], *, name: str = "") -> None:
    """Share of each true class (row) by predicted class (column), the number of clips written in."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(1.6 + 0.7 * len(classes), 1.1 + 0.65 * len(classes)), layout="constrained")
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(int(matrix[row, column])), ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(_title(name, "Confusion matrix (clips)"), fontsize=10)
    figure.colorbar(picture, label="share of the true class", shrink=0.8)
    _save(figure, path)


def plot_reliability(path: Path, bins: list[dict[str, Any]], error: float, *, name: str = "") -> None:
    """Accuracy by confidence, as `metrics.calibration_error` bins them, above the number of clips in each bin."""
    figure, (axes, counts) = plt.subplots(2, figsize=(5, 5.6), layout="constrained", sharex=True, height_ratios=[3, 1])
    full = [row for row in bins if row["clips"]]
    places, width = [(row["low"] + row["high"]) / 2 for row in bins], 1 / len(bins)
    axes.plot([0, 1], [0, 1], "--", color=GREY, lw=1, label="as sure as right")
    axes.bar(places, [row["accuracy"] or 0 for row in bins], width * 0.94, color=BLUE, label="accuracy")
    means = [[row[name] for row in full] for name in ("confidence", "accuracy")]
    axes.plot(*means, "o", color=ORANGE, ms=4, label="at the bin's mean confidence")
    axes.set(ylabel="share of right guesses", ylim=(-0.02, 1.04), xlim=(0, 1))
    axes.set_title(_title(name, f"Reliability: expected calibration error {100 * error:.1f} %"), fontsize=10)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, frameon=False, columnspacing=1)
    counts.bar(places, [row["clips"] for row in bins], width * 0.94, color=GREY)
    counts.set(xlabel="confidence (probability of the guessed class)", ylabel="clips")
    counts.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    _save(figure, path)


def plot_epoch_curves(path: Path, series: dict[str, list[float]], *, ylabel: str, title: str) -> None:
    """Lines over epochs."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, values in series.items():
        axes.plot(range(1, len(values) + 1), values, label=name)
    axes.set(xlabel="epoch", ylabel=ylabel, title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_retrieval_recall(path: Path, scores: dict[str, Any], title: str) -> None:
    """Recall at 1, 5 and 10 of video finding its audio and back, with intervals; chance dashed."""
    names = [name for name in scores["chance"] if name.startswith("recall")]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    places = np.arange(len(names))
    directions = (
        ("video_to_audio", "video finds its audio", BLUE, -0.2),
        ("audio_to_video", "audio finds its video", ORANGE, 0.2),
    )
    for direction, label, colour, shift in directions:
        values = _percent([tuple(scores[direction][name].values()) for name in names])
        errors = np.abs(values[:, 1:] - values[:, :1]).T
        axes.bar(places + shift, values[:, 0], 0.38, yerr=errors, color=colour, label=label, error_kw={"capsize": 3})
    chance = [100 * scores["chance"][name] for name in names]
    axes.hlines(chance, places - 0.42, places + 0.42, color=GREY, ls="--", label="chance")
    axes.set_xticks(places, names)
    axes.set(ylabel=f"% of the clips{_legend_of_bars(values)}", title=title, ylim=(0, 100))
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_training_losses(path: Path, losses: dict[str, list[float]], title: str) -> None:
    """Mean training loss of each adapter in every epoch."""
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for number, (name, training) in enumerate(losses.items()):
        axes.plot(range(1, len(training) + 1), training, ".-", color=f"C{number % 10}", label=name)
    axes.set(xlabel="epoch", ylabel="cross-entropy of the training clips", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_adaptation(path: Path, layers: list[int], probes: dict[str, Any], *, title: str) -> None:
    """Weighted F1 of a probe of every adapted layer before and after, and how alike the layer stayed (CKA)."""
    figure, (axes, cka_axes) = plt.subplots(2, figsize=(7, 5), layout="constrained", sharex=True, height_ratios=[3, 1])
    for name, colour, shift, style in (("frozen", GREY, -0.06, "s--"), ("adapted", BLUE, 0.06, "o-")):
        values = [tuple(probes[str(layer)][name]["waf"].values()) for layer in layers]
        _draw_curve(axes, np.array(layers) + shift, values, style=style, colour=colour, label=f"probe, {name}")
    axes.set(ylabel=f"weighted F1, %{_legend_of_bars(_percent(values))}", title=title)
    axes.legend(fontsize=8)
    cka_axes.plot(layers, [probes[str(layer)]["cka"] for layer in layers], "D-", color=ORANGE, clip_on=False)
    cka_axes.set(xlabel="layer", ylabel="linear CKA", ylim=(0, 1), xlim=(min(layers) - 0.6, max(layers) + 0.6))
    _tick_layers(cka_axes, layers)
    _save(figure, path)


def _title(name: str, text: str) -> str:
    """Return a title whose first lines name the file it is of."""
    return "\n".join([*textwrap.wrap(name, TITLE_WIDTH), text])


def _percent(scores: Sequence[Sequence[float | None]], factor: float = 100) -> np.ndarray:
    """Return scores (N, 3) times a factor; bounds that are None are NaN, of which matplotlib draws no bar."""
    return np.array(scores, float) * factor


def _legend_of_bars(values: np.ndarray, interval: str = "95 % interval") -> str:
    """Return what the bars of values (N, 3) are, for the label of an axis; nothing if there are none."""
    return f" (bars: {interval})" if np.isfinite(values[:, 1:]).any() else ""


def _draw_curve(
    axes: Any, x: np.ndarray, scores: Sequence[Score], *, style: str, colour: str, label: str, factor: float = 100
) -> None:
    """Draw a curve of scores (value, low, high), times a factor, with their intervals."""
    values = _percent(scores, factor)
    errors = np.abs(values[:, 1:] - values[:, :1]).T
    axes.errorbar(x, values[:, 0], errors, fmt=style, color=colour, ms=4.5, lw=1.4, elinewidth=0.9, label=label)


def _tick_layers(axes: Any, layers: list[int]) -> None:
    """A tick at every layer, at some of very many."""
    if len(layers) > MOST_TICKS:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set_xticks(layers)


def _save(figure: Any, path: Path) -> None:
    import io

    for suffix in (".png", ".svg"):
        buffer = io.BytesIO()
        metadata = {"Date": None} if suffix == ".svg" else None
        figure.savefig(buffer, format=suffix[1:], dpi=130, metadata=metadata)
        write_atomic(path.with_suffix(suffix), buffer.getvalue())
    plt.close(figure)

"""Comparison of PEFT methods that were trained under the same conditions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mertool.adapters.reporting import HELD_OUT
from mertool.features import describe_layers
from mertool.learning.folds import speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.predictions import Predictions
from mertool.runs import Run
from mertool.significance import adjust_by_holm, paired_test

SHARED_METRICS = ("clips", "folds", "interval", "layers", "frozen", "parameters")


def compare_runs(runs: dict[str, Run], examples: LabelledClips, *, n_classes: int) -> dict[str, Any]:
    """Return the scores of every method, with paired tests against the one that scores best.

    `runs` has the run of each method, all on the same clips, which are among `examples`.
    """
    predictions = {method: Predictions.read(run.folder / HELD_OUT) for method, run in runs.items()}
    clips = next(iter(predictions.values())).clips
    examples = examples.select(np.isin(examples.clips, clips))
    guesses = {method: _classes_of(rows, examples.clips) for method, rows in predictions.items()}
    metrics = {method: run.metrics for method, run in runs.items()}
    best = max(metrics, key=lambda method: metrics[method]["adapted"]["waf"]["value"])
    table: dict[str, dict[str, Any]] = {}
    for method, scores in metrics.items():
        row = {name: scores[name] for name in ("size", "trainable", "adapted", "adapted_probe", "averaged", "gains")}
        row["share"] = scores["trainable"] / scores["parameters"]
        row["run"] = str(runs[method].folder)
        # The best method was chosen on these same clips, so its lead over the others is optimistic.
        if method != best:
            row["against_best"] = paired_test(
                examples.labels,
                guesses[best],
                guesses[method],
                n_classes=n_classes,
                groups=speaker_groups(examples),
            )
        table[method] = row
    adjust_by_holm([row["gains"]["adapted"] for row in table.values()])
    adjust_by_holm([row["against_best"] for method, row in table.items() if method != best])
    return {**{name: metrics[best][name] for name in SHARED_METRICS}, "best": best, "methods": table}


def _classes_of(predictions: Predictions, clips: Sequence[str]) -> np.ndarray:
    """Return the predicted class (N,) of each of the clips."""
    row_of = {clip: row for row, clip in enumerate(predictions.clips)}
    return predictions.probabilities[[row_of[clip] for clip in clips]].argmax(1)


def plot_comparison(path: Path, metrics: dict[str, Any]) -> None:
    """Plot the weighted F1 of the frozen encoder and of every method."""
    from mertool.plots import plot_score_bars

    scores = {"frozen": metrics["frozen"]} | {name: row["adapted"] for name, row in metrics["methods"].items()}
    bars = {name: tuple(score["waf"].values()) for name, score in scores.items()}
    plot_score_bars(path, bars, title=f"Adapters on {describe_layers(metrics['layers'])}, held-out clips")

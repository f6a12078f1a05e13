"""Scores as the commands print them: names of the field, shares in per cent, correlations and errors as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from mertool.cli.console import format_gain, format_score

CLASS_SCORES = {"waf": "weighted F1", "accuracy": "accuracy", "uar": "UAR", "macro_f1": "macro F1"}
NUMBER_SCORES = {"ccc": "CCC", "pearson": "Pearson", "mae": "MAE", "mse": "MSE"}
SENTIMENT_SCORES = {
    "acc2_with_zero": "Acc-2, negative or not",
    "f1_with_zero": "F1, negative or not",
    "acc2_without_zero": "Acc-2 without zeros",
    "f1_without_zero": "F1 without zeros",
    "acc5": "Acc-5",
    "acc7": "Acc-7",
}
TITLES = {**CLASS_SCORES, **NUMBER_SCORES, **SENTIMENT_SCORES}


def main_score(target: str) -> str:
    """Return the name of the score that runs of a target are compared by."""
    return "waf" if target == "emotion" else "ccc"


def format_named_score(name: str, score: Mapping[str, float | None]) -> str:
    """`73.0 [70.1, 75.8]` for a share, `0.512 [0.430, 0.586]` for another score."""
    return format_score(score, percent=name not in NUMBER_SCORES)


def format_named_gain(name: str, gain: Mapping[str, Any]) -> str:
    """`+1.2 [-0.3, +2.8], p = 0.110` in points for a share, else `+0.012 [-0.003, +0.028], p = 0.110`."""
    return format_gain(gain, percent=name not in NUMBER_SCORES)


def score_cells(scores: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the cells of a table row for these scores."""
    return [format_named_score(name, scores[name]) for name in names]

"""Stage `evaluate`: scores of predictions against labels, and a paired test between two of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import MertoolError
from mertool.files import write_atomic
from mertool.manifest import Manifest
from mertool.metrics import confusion, mcnemar, paired_bootstrap, per_class, score_json
from mertool.predictions import Predictions


def evaluate(predictions: list[Path], manifest: Manifest, output: Path | None, seed: int = 0) -> dict[str, Any]:
    """Scores of one or two predictions files on the labelled clips they predict.

    With `output` the scores are also written there, and the confusion matrix beside it. Clips with a label
    and no prediction are counted, not guessed.
    """
    systems = [Predictions.read(path) for path in predictions]
    classes = systems[0].classes
    if any(system.classes != classes for system in systems):
        raise MertoolError(f"{predictions[0]} and {predictions[1]} predict different classes")
    labels = manifest.scored(classes)
    shared = set(labels).intersection(*(system.clips for system in systems))
    if not shared:
        raise MertoolError(
            f"none of the {len(labels)} labelled clips of {manifest.source} is in {predictions[0]}: give the "
            "manifest of the clips that were predicted"
        )
    clips = [clip for clip in systems[0].clips if clip in shared]
    truth = np.array([classes.index(labels[clip]) for clip in clips])
    guesses = [_guesses(system, clips) for system in systems]
    result: dict[str, Any] = {
        "clips": len(clips),
        "labelled_without_prediction": len(labels) - len(clips),
        "classes": list(classes),
        "systems": [
            _scores(str(path), truth, guess, classes, seed) for path, guess in zip(predictions, guesses, strict=True)
        ],
    }
    if len(systems) == 2:
        first, second = guesses
        result["paired"] = {
            "waf": paired_bootstrap(truth, first, second, len(classes), seed),
            "mcnemar": mcnemar(truth, first, second),
        }
    if output:
        write_atomic(output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        from mertool.plots import confusion_matrix

        matrix = confusion(truth, guesses[0], len(classes))
        confusion_matrix(output.with_name(output.stem + "-confusion"), matrix, classes)
    return result


def _guesses(system: Predictions, clips: list[str]) -> np.ndarray:
    row = {clip: number for number, clip in enumerate(system.clips)}
    return system.probabilities[[row[clip] for clip in clips]].argmax(axis=1)


def _scores(name: str, truth: np.ndarray, guess: np.ndarray, classes: tuple[str, ...], seed: int) -> dict[str, Any]:
    matrix = confusion(truth, guess, len(classes))
    return {
        "predictions": name,
        **score_json(truth, guess, len(classes), seed),
        "per_class": per_class(matrix, classes),
        "confusion": matrix.tolist(),
    }

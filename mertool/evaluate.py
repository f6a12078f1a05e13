"""Stage `evaluate`: scores of predictions against labels, a paired test of two of them, and what a bundle loses
without a modality or in noise."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import MertoolError
from mertool.files import check_writable, write_atomic
from mertool.manifest import Manifest
from mertool.metrics import calibration_error, confusion_matrix, mcnemar, paired_bootstrap, per_class_scores, score_json
from mertool.options.evaluate import EvaluateOptions
from mertool.predictions import Predictions


@dataclass(frozen=True)
class _Scored:
    """Clips that are scored: ids, class indices (N,), speakers (N,) where all are known."""

    clips: list[str]
    truth: np.ndarray
    speakers: np.ndarray | None
    classes: tuple[str, ...]

    def only(self, clips: list[str]) -> "_Scored":
        """Some of them, in this order."""
        row = {clip: number for number, clip in enumerate(self.clips)}
        rows = [row[clip] for clip in clips]
        speakers = None if self.speakers is None else self.speakers[rows]
        return _Scored(clips, self.truth[rows], speakers, self.classes)


def evaluate(
    predictions: list[Path],
    manifest: Manifest,
    output: Path | None,
    options: EvaluateOptions | None = None,
    progress: Callable[[int, int, int, float], None] = lambda *_: None,
) -> dict[str, Any]:
    """Scores of one or two predictions files on the labelled clips they predict.

    Intervals are over speakers where the manifest knows those of all scored clips, else over clips. With `output` the
    scores are also written there, and plots beside it. Clips with a label and no prediction are counted, not guessed.
    """
    options = options or EvaluateOptions()
    if len(predictions) > 2:
        raise MertoolError(f"{len(predictions)} predictions files: give one, or two for a paired test")
    if options.bundle and len(predictions) > 1:
        raise MertoolError("--missing and --noise are of one predictions file: give one")
    if output:
        check_writable(output, manifest.source, *predictions)
    systems = [Predictions.read(path) for path in predictions]
    scored, labelled = _scored(systems, predictions, manifest)
    probabilities = [_rows(system, scored.clips) for system in systems]
    result: dict[str, Any] = {
        "clips": len(scored.clips),
        "labelled_without_prediction": labelled - len(scored.clips),
        "classes": list(scored.classes),
        "intervals": "clips" if scored.speakers is None else "speakers",
        "systems": [
            {"predictions": str(path), **_scores(scored, rows, options.seed)}
            for path, rows in zip(predictions, probabilities, strict=True)
        ],
    }
    if len(systems) == 2:
        first, second = (rows.argmax(1) for rows in probabilities)
        result["paired"] = {
            "waf": _gain(scored, first, second, options.seed),
            "mcnemar": mcnemar(scored.truth, first, second),
        }
    if options.bundle:
        result["robustness"] = _robustness(predictions[0], probabilities[0], scored, manifest, options, progress)
    if output:
        _write(output, result)
    return result


def _scored(systems: list[Predictions], paths: list[Path], manifest: Manifest) -> tuple[_Scored, int]:
    """The labelled clips that all systems predict, in the first one's order; and the number of labelled ones."""
    classes = systems[0].classes
    if any(system.classes != classes for system in systems):
        raise MertoolError(f"{paths[0]} and {paths[1]} predict different classes: compare predictions of the same ones")
    labels, speakers = manifest.known_labels(classes), manifest.speakers()
    if not labels:
        raise MertoolError(f"{manifest.source} has no labels: build it with `mertool manifest FOLDER --labels CSV`")
    shared = set(labels).intersection(*(system.clips for system in systems))
    if not shared:
        raise MertoolError(
            f"none of the {len(labels)} labelled clips of {manifest.source} is in {' and '.join(map(str, paths))}: "
            "give the manifest of the clips that were predicted"
        )
    clips = [clip for clip in systems[0].clips if clip in shared]
    truth = np.array([classes.index(labels[clip]) for clip in clips])
    groups = [speakers.get(clip, "") for clip in clips]
    # Of one speaker alone there is nothing to draw.
    known = all(groups) and len(set(groups)) > 1
    return _Scored(clips, truth, np.array(groups) if known else None, classes), len(labels)


def _rows(system: Predictions, clips: list[str]) -> np.ndarray:
    row = {clip: number for number, clip in enumerate(system.clips)}
    return system.probabilities[[row[clip] for clip in clips]]


def _scores(scored: _Scored, probabilities: np.ndarray, seed: int) -> dict[str, Any]:
    guess, count = probabilities.argmax(1), len(scored.classes)
    matrix = confusion_matrix(scored.truth, guess, count)
    return {
        **score_json(scored.truth, guess, count, seed=seed, groups=scored.speakers),
        "calibration": calibration_error(probabilities, scored.truth),
        "per_class": per_class_scores(matrix, scored.classes),
        "confusion": matrix.tolist(),
    }


def _gain(scored: _Scored, first: np.ndarray, second: np.ndarray, seed: int) -> dict[str, float]:
    return paired_bootstrap(scored.truth, first, second, classes=len(scored.classes), seed=seed, groups=scored.speakers)


def _robustness(
    path: Path,
    probabilities: np.ndarray,
    scored: _Scored,
    manifest: Manifest,
    options: EvaluateOptions,
    progress: Callable[[int, int, int, float], None],
) -> list[dict[str, Any]]:
    """Scores of the bundle in each condition, and the difference to how it was, on the same clips."""
    from mertool.bundle.conditions import RobustnessEvaluator  # it imports torch, which scores alone do not need

    assert options.bundle is not None
    conditions = RobustnessEvaluator(
        options.bundle, path, manifest, options.device, options.workers, options.clip_timeout
    )
    given = dict(zip(scored.clips, probabilities, strict=True))
    as_is = dict(zip(scored.clips, probabilities.argmax(1), strict=True))
    rows = []
    for name, found in conditions.scores(given, options.missing, options.noise, options.seed, progress):
        some = scored.only(list(found))
        guess = np.array([row.argmax() for row in found.values()])
        rows.append(
            {
                "condition": name,
                "clips": len(found),
                **score_json(some.truth, guess, len(some.classes), seed=options.seed, groups=some.speakers),
                "difference": _gain(some, np.array([as_is[clip] for clip in found]), guess, options.seed),
            }
        )
    return rows


def _write(output: Path, result: dict[str, Any]) -> None:
    from mertool.plots import plot_confusion_matrix, plot_reliability, plot_score_bars

    write_atomic(output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    first, classes = result["systems"][0], tuple(result["classes"])
    plot_confusion_matrix(output.with_name(output.stem + "-confusion"), np.array(first["confusion"]), classes)
    found = first["calibration"]
    plot_reliability(output.with_name(output.stem + "-reliability"), found["bins"], found["ece"])
    if "robustness" in result:
        bars = {row["condition"]: tuple(row["waf"].values()) for row in result["robustness"]}
        plot_score_bars(output.with_name(output.stem + "-robustness"), bars, "The same bundle with less to go by")

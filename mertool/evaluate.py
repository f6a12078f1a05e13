"""Stage `evaluate`: scores of predictions against labels, a paired test of two predictions files, and the loss of a
bundle without a modality or in noise."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import MertoolError, MertoolWarning
from mertool.files import check_writable, write_atomic
from mertool.interop.labels import is_manifest, label_clips
from mertool.manifest import Clip, Manifest, canonical_label
from mertool.metrics import averaged_classes, calibration_error, confusion_matrix, per_class_scores
from mertool.options.evaluate import EvaluateOptions
from mertool.predictions import AnyPredictions, feature_cache_folder, read_predictions
from mertool.significance import adjust_by_holm, known_speakers, mcnemar
from mertool.targets import Classes, Target

NUMBER_TESTS = ("ccc", "mae")  # the scores of numbers that two systems are compared by


@dataclass(frozen=True, kw_only=True)
class EvaluatedClips:
    """The labelled clips that are scored.

    clips: ids of the N clips.
    labels: class indices or numbers (N,).
    speakers: (N,) where the speakers of all clips are known, and are two or more, else None.
    target: the kind of the labels.
    """

    clips: list[str]
    labels: np.ndarray
    speakers: np.ndarray | None
    target: Target

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where the labels are numbers."""
        return self.target.classes

    def select(self, clips: Sequence[str]) -> "EvaluatedClips":
        """Return a subset of the clips, in this order."""
        row_of = {clip: row for row, clip in enumerate(self.clips)}
        rows = [row_of[clip] for clip in clips]
        return EvaluatedClips(
            clips=list(clips),
            labels=self.labels[rows],
            speakers=None if self.speakers is None else self.speakers[rows],
            target=self.target,
        )

    def scores(self, predicted: np.ndarray) -> dict[str, Any]:
        """Scores of predicted class indices or numbers (N,), with intervals, and the classes that they average over."""
        scores = self.target.measure.score_json(self.labels, predicted, groups=self.speakers)
        if not self.classes:
            return scores
        matrix = confusion_matrix(self.labels, predicted, len(self.classes))
        return {**scores, "averaged_classes": averaged_classes(matrix, self.classes)}

    def gain(self, first: np.ndarray, second: np.ndarray, name: str | None = None) -> dict[str, Any]:
        """Paired test of the difference in a score, by default the main one, of two systems' predictions (N,)."""
        return self.target.measure.paired_test(self.labels, first, second, groups=self.speakers, name=name)


def evaluate(
    predictions: list[Path],
    manifest: Manifest,
    output: Path | None,
    options: EvaluateOptions | None = None,
    *,
    on_progress: Callable[[int, int, int, float], None] = lambda *_: None,
) -> dict[str, Any]:
    """Scores of one or two predictions files, of classes or of a number, on the labelled clips that they predict.

    Intervals are over speakers where the manifest knows those of all scored clips, else over clips. With `output` the
    scores are also written there, and plots beside it. Clips with a label and no prediction are counted, not guessed.
    """
    options = options or EvaluateOptions()
    if len(predictions) > 2:
        raise MertoolError(f"{len(predictions)} predictions files: give one, or two for a paired test")
    if options.bundle and len(predictions) > 1:
        raise MertoolError("--missing and --noise are of one predictions file: give one")
    if output:
        check_writable(output, *_inputs(predictions, manifest, options))
    systems = [read_predictions(path, options.target) for path in predictions]
    evaluated, labelled = _select_clips(systems, predictions, manifest)
    if options.bundle and not evaluated.classes:
        raise MertoolError(f"--missing and --noise are for classes: {predictions[0]} holds a number")
    outputs = [_outputs_of(system, evaluated.clips) for system in systems]
    n_with_speaker = _count_known_speakers(evaluated, manifest)
    result: dict[str, Any] = {
        "labels": str(manifest.source),
        "bundle": str(options.bundle) if options.bundle else None,
        "clips": len(evaluated.clips),
        "labelled_without_prediction": labelled - len(evaluated.clips),
        "target": evaluated.target.name,
        "classes": list(evaluated.classes),
        "intervals": "clips" if evaluated.speakers is None else "speakers",
        "systems": [
            {"predictions": str(path), **_score_system(evaluated, rows)}
            for path, rows in zip(predictions, outputs, strict=True)
        ],
    }
    if len(systems) == 2:
        first, second = map(evaluated.target.decide, outputs)
        result["paired"] = _compare(evaluated, first, second, speakers_known=n_with_speaker > 0)
    if options.bundle:
        predicted = dict(zip(evaluated.clips, outputs[0], strict=True))
        result["robustness"] = _score_conditions(
            predicted, evaluated, path=predictions[0], manifest=manifest, options=options, on_progress=on_progress
        )
    if output:
        result["plots"] = _plot(output, result)
        write_atomic(output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def read_truth(labels: Path, predictions: Sequence[Path], classes: tuple[str, ...] | None = None) -> Manifest:
    """Return the true labels of a manifest, or of any file that `mertool manifest --labels` reads.

    The latter names clips in its own way, so it is joined to the clips that are predicted. `classes` names labels that
    are numbers, in index order.
    """
    manifest = _read_labels(labels, predictions)
    if classes is None:
        return manifest
    if unknown := manifest.describe_unknown_labels(classes):
        raise MertoolError(f"{labels}: {unknown}; name another set with --classes a,b,c")
    named = (replace(c, label=canonical_label(c.label, classes)) if c.label else c for c in manifest.clips)
    return replace(manifest, clips=tuple(named))


def _read_labels(labels: Path, predictions: Sequence[Path]) -> Manifest:
    if not labels.exists() or is_manifest(labels):
        return Manifest.read(labels)
    clips: dict[str, Clip] = {}
    for system in map(read_predictions, predictions):
        paths = system.paths or ("",) * len(system.clips)
        for clip, path in zip(system.clips, paths, strict=True):
            clips.setdefault(clip, Clip(clip=clip, path=Path(path) if path else None))
    return label_clips(tuple(clips.values()), labels)


def _inputs(predictions: list[Path], manifest: Manifest, options: EvaluateOptions) -> list[Path]:
    """Return every file and run that is read, none of which may be written over."""
    folders = [feature_cache_folder(path) for path in predictions if options.bundle]
    folders += [Path(options.noise)] if options.noise else []
    files = [file for folder in folders for file in folder.rglob("*")]
    bundle = [options.bundle] if options.bundle else []
    return [manifest.source, *predictions, *bundle, *files, *(path for clip in manifest.clips for path in clip.files)]


def _select_clips(systems: list[AnyPredictions], paths: list[Path], manifest: Manifest) -> tuple[EvaluatedClips, int]:
    """The labelled clips that all systems predict, sorted; and the number of labelled clips."""
    target = systems[0].target
    if any(system.target != target for system in systems):
        kind = "classes" if target.classes else "targets"
        raise MertoolError(f"{paths[0]} and {paths[1]} predict different {kind}: compare predictions of the same ones")
    labels, speakers = target.known_labels(manifest), manifest.speakers()
    if not labels:
        missing = "labels" if target.classes else f"numbers in a column {target.name}"
        raise MertoolError(f"{manifest.source} has no {missing}: build it with `mertool manifest FOLDER --labels CSV`")
    shared = set(labels).intersection(*(system.clips for system in systems))
    if not shared:
        raise MertoolError(
            f"none of the {len(labels)} labelled clips of {manifest.source} is in {' and '.join(map(str, paths))}: "
            "give the manifest of the clips that were predicted"
        )
    # Sorted, so that the random exchanges of the paired test do not depend on the order of a file.
    clips = sorted(shared)
    evaluated = EvaluatedClips(
        clips=clips,
        labels=np.array([labels[clip] for clip in clips]),
        speakers=known_speakers([speakers.get(clip) for clip in clips]),
        target=target,
    )
    return evaluated, len(labels)


def _count_known_speakers(evaluated: EvaluatedClips, manifest: Manifest) -> int:
    """Return the number of scored clips whose speaker is known; warn if these are some of them only."""
    speakers = manifest.speakers()
    count = sum(clip in speakers for clip in evaluated.clips)
    if 0 < count < len(evaluated.clips):
        warnings.warn(
            f"{manifest.source} names the speakers of only {count} of the {len(evaluated.clips)} scored clips, so "
            "intervals and tests are over clips, and too optimistic if speakers said several: name all speakers",
            MertoolWarning,
            stacklevel=3,
        )
    return count


def _outputs_of(system: AnyPredictions, clips: list[str]) -> np.ndarray:
    row_of = {clip: row for row, clip in enumerate(system.clips)}
    return system.outputs[[row_of[clip] for clip in clips]]


def _compare(
    evaluated: EvaluatedClips, first: np.ndarray, second: np.ndarray, *, speakers_known: bool
) -> dict[str, Any]:
    """Return the paired tests of two systems' predictions (N,)."""
    if not evaluated.classes:
        tests = {name: evaluated.gain(first, second, name) for name in NUMBER_TESTS}
        adjust_by_holm(list(tests.values()))
        return tests
    compared: dict[str, Any] = {"waf": evaluated.gain(first, second)}
    # McNemar's test takes clips to be independent, which those of one speaker are not.
    if not speakers_known:
        compared["mcnemar"] = mcnemar(evaluated.labels, first, second)
    return compared


def _score_system(evaluated: EvaluatedClips, outputs: np.ndarray) -> dict[str, Any]:
    predicted = evaluated.target.decide(outputs)
    if not isinstance(evaluated.target, Classes):
        return evaluated.scores(predicted)
    matrix = confusion_matrix(evaluated.labels, predicted, len(evaluated.classes))
    return {
        **evaluated.scores(predicted),
        "calibration": calibration_error(outputs, evaluated.labels),
        "per_class": per_class_scores(matrix, evaluated.classes),
        "confusion": matrix.tolist(),
    }


def _score_conditions(
    predicted: dict[str, np.ndarray],
    evaluated: EvaluatedClips,
    *,
    path: Path,
    manifest: Manifest,
    options: EvaluateOptions,
    on_progress: Callable[[int, int, int, float], None],
) -> list[dict[str, Any]]:
    """Scores of the bundle in each condition, and the difference to those as it is, on the same clips."""
    # These import torch, which scores of files do not need.
    from mertool.bundle import Bundle
    from mertool.bundle.robustness import RobustnessEvaluator
    from mertool.devices import resolve_device
    from mertool.extraction.decoding import DecoderLimits

    assert options.bundle is not None
    bundle = Bundle.open(options.bundle)
    if not bundle.classes:
        raise MertoolError(f"--bundle {options.bundle} predicts {bundle.target.name}, {path} holds classes")
    evaluator = RobustnessEvaluator(
        bundle=bundle,
        predictions=path,
        manifest=manifest,
        device=resolve_device(options.device),
        limits=DecoderLimits(options.workers, options.clip_timeout),
    )
    conditions = evaluator.score_conditions(
        predicted, missing=options.missing, noise=options.noise, seed=options.seed, on_progress=on_progress
    )
    rows = []
    for condition in conditions:
        probabilities = condition.probabilities
        row = {"condition": condition.name, "clips": len(probabilities), "not_scored": condition.excluded}
        if not probabilities:
            raise MertoolError(f"{condition.name}: no clip is left to score ({', '.join(condition.excluded)})")
        subset = evaluated.select(list(probabilities))
        guesses = np.array([row.argmax() for row in probabilities.values()])
        guesses_as_is = np.array([predicted[clip].argmax() for clip in probabilities])
        scores = {**subset.scores(guesses), "difference": subset.gain(guesses_as_is, guesses)}
        rows.append({**row, **scores})
    # The first condition is the predictions themselves.
    adjust_by_holm([row["difference"] for row in rows[1:]])
    return rows


def _plot(output: Path, result: dict[str, Any]) -> list[str]:
    """Draw the pictures of each system, titled by its file, and of the conditions; return the PNG files.

    Numbers have none: their confusion and calibration are those of classes.
    """
    if not result["classes"]:
        return []
    from mertool.plots import plot_confusion_matrix, plot_reliability, plot_score_bars

    plots, classes = [], tuple(result["classes"])
    names = _short_names([Path(system["predictions"]) for system in result["systems"]])
    for number, (system, name) in enumerate(zip(result["systems"], names, strict=True), start=1):
        suffix = f"-{number}" if len(names) > 1 else ""
        confusion, reliability = (
            output.with_name(f"{output.stem}-{kind}{suffix}.png") for kind in ("confusion", "reliability")
        )
        plot_confusion_matrix(confusion, np.array(system["confusion"]), classes, name=name)
        calibration = system["calibration"]
        plot_reliability(reliability, calibration["bins"], calibration["ece"], name=name)
        plots += [confusion, reliability]
    if "robustness" in result:
        bars = {f"{row['condition']}, {row['clips']} clips": tuple(row["waf"].values()) for row in result["robustness"]}
        plots.append(output.with_name(f"{output.stem}-robustness.png"))
        plot_score_bars(plots[-1], bars, title="The same bundle in harder conditions")
    return list(map(str, plots))


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the ends of paths, with as many folders as tell them apart: `a/held_out.csv`, `b/held_out.csv`."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return list(map(str, paths))

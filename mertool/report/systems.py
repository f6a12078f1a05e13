"""Systems: predictions of labelled clips that a run or an evaluation saved, with their scores and confusions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import MertoolError
from mertool.manifest import EMOTIONS, Clip, Manifest
from mertool.metrics import averaged_classes, calibration_error, confusion_matrix, per_class_scores
from mertool.predictions import Predictions
from mertool.report.chain import Chain, ReportedRun
from mertool.significance import known_speakers, score_json

# Held-out predictions of a run by the system that made them; the first is the one that runs are compared by.
HELD_OUT = {
    "fuse": {"": "held_out.csv"},
    "finetune": {
        "": "held_out.csv",
        "frozen": "held_out-frozen.csv",
        "adapted_probe": "held_out-probe.csv",
        "averaged": "held_out-averaged.csv",
    },
}
NAMES = {"frozen": "frozen features", "adapted_probe": "new probe", "averaged": "mean of head and frozen probe"}
TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class System:
    """Predictions of N labelled clips.

    Attributes:
        name: Unique in the report.
        run: Name of the run, or the evaluation file.
        on: `cross-validation` or `evaluation`.
        is_main: True for the system of a given run or evaluation that the others are compared with.
        classes: Names of the C classes.
        clips: Ids of the clips, sorted.
        truth: Class indices (N,).
        probabilities: (N, C).
        speakers: (N,), None unless all are known.
        details: The manifest's rows by clip.
        recorded: Scores that the run recorded.
    """

    name: str
    run: str
    on: str
    is_main: bool
    classes: tuple[str, ...]
    clips: list[str]
    truth: np.ndarray
    probabilities: np.ndarray
    speakers: np.ndarray | None
    details: dict[str, Clip]
    recorded: dict[str, Any] = field(default_factory=dict)

    @property
    def predicted(self) -> np.ndarray:
        """Class indices (N,)."""
        return self.probabilities.argmax(1)

    def to_json(self) -> dict[str, Any]:
        """Return names, scores, the confusion matrix, scores per class and the calibration."""
        matrix = confusion_matrix(self.truth, self.predicted, len(self.classes))
        scores = score_json(self.truth, self.predicted, len(self.classes), groups=self.speakers)
        return {
            "name": self.name,
            "run": self.run,
            "on": self.on,
            "main": self.is_main,
            "classes": list(self.classes),
            "clips": len(self.clips),
            "intervals": "clips" if self.speakers is None else "speakers",
            "scores": scores,
            "confusion": matrix.tolist(),
            "per_class": per_class_scores(matrix, self.classes),
            "averaged_classes": averaged_classes(matrix, self.classes),
            "calibration": calibration_error(self.probabilities, self.truth),
            "as_recorded": self._is_as_recorded(scores),
        }

    def _is_as_recorded(self, scores: dict[str, Any]) -> bool | None:
        """Return whether the scores are those of the run; None if it recorded none."""
        recorded = self.recorded.get("waf")
        if not isinstance(recorded, dict) or not isinstance(recorded.get("value"), float | int):
            return None
        return abs(recorded["value"] - scores["waf"]["value"]) < TOLERANCE


def systems_of_run(chain: Chain, reported: ReportedRun) -> list[System]:
    """Return the systems of a run whose predictions and labels are still there; note what is gone."""
    files = HELD_OUT.get(reported.stage, {})
    if not files or reported.manifest is None:
        return []
    try:
        manifest = Manifest.read(reported.manifest)
    except MertoolError as error:
        chain.miss(reported.name, "manifest", reported.manifest, error)
        return []
    systems = []
    for kind, file in files.items():
        path = reported.run.folder / file
        try:
            systems.append(
                make_system(
                    [reported.name, NAMES.get(kind, kind)],
                    Predictions.read(path),
                    manifest,
                    run=reported.name,
                    on="cross-validation",
                    is_main=not kind and reported.given,
                    recorded=_recorded_scores(reported, kind),
                )
            )
        except MertoolError as error:
            chain.miss(reported.name, "predictions", path, error)
    return systems


def _recorded_scores(reported: ReportedRun, kind: str) -> dict[str, Any]:
    metrics = reported.metrics
    if reported.stage == "finetune":
        found = metrics.get(kind or "adapted")
    else:
        ensembles = metrics.get("cross_validation") or metrics.get("ensembles") or {}
        # The bundle's ensemble is the last one; it is named `fusion` unless there is a single store.
        found = list(ensembles.values())[-1] if isinstance(ensembles, dict) and ensembles else None
    return found if isinstance(found, dict) else {}


def systems_of_evaluation(chain: Chain, path: Path, evaluation: dict[str, Any]) -> list[System]:
    """Return the systems of a JSON file of `mertool evaluate` whose predictions and labels are still there."""
    labels, systems = evaluation.get("labels"), []
    name = path.name
    if not all(isinstance(entry, dict) and "confusion" in entry for entry in evaluation["systems"]):
        chain.miss(name, "systems", path, "a report shows scores of classes, and these have no confusion matrix")
        return []
    if not isinstance(labels, str):
        chain.miss(name, "labels", path, "the file does not name them: run `mertool evaluate` again")
        return []
    try:
        manifest = Manifest.read(_beside(path, labels))
    except MertoolError as error:
        chain.miss(name, "labels", labels, error)
        return []
    for entry in evaluation["systems"]:
        text = str(entry.get("predictions")) if isinstance(entry, dict) else ""
        if chain.has_run(_beside(path, text).parent):
            continue  # held-out predictions of a run, which are a system of that run
        several = len(evaluation["systems"]) > 1
        try:
            system = make_system(
                [name, text if several else ""],
                Predictions.read(_beside(path, text)),
                manifest,
                run=name,
                on="evaluation",
                is_main=True,
                recorded=entry if isinstance(entry, dict) and not several else {},
            )
            systems.append(system)
        except MertoolError as error:
            chain.miss(name, "predictions", text, error)
    return systems


def _beside(file: Path, text: str) -> Path:
    """Return a path that a file names, or one of that name beside the file."""
    path = Path(text)
    return path if path.exists() or not (file.parent / path.name).exists() else file.parent / path.name


def make_system(
    names: Sequence[str],
    predictions: Predictions,
    manifest: Manifest,
    *,
    run: str,
    on: str,
    is_main: bool,
    recorded: dict[str, Any],
) -> System:
    """Join predictions and labels; raise MertoolError if no labelled clip is predicted."""
    classes = predictions.classes
    labels = manifest.known_labels(EMOTIONS if classes == EMOTIONS else classes)
    row_of = {clip: row for row, clip in enumerate(predictions.clips)}
    clips = sorted(labels.keys() & row_of.keys())
    if not clips:
        raise MertoolError(f"none of the labelled clips of {manifest.source} is predicted")
    speakers = manifest.speakers()
    return System(
        name=", ".join(filter(None, names)),
        run=run,
        on=on,
        is_main=is_main,
        classes=classes,
        clips=clips,
        truth=np.array([classes.index(labels[clip]) for clip in clips]),
        probabilities=predictions.probabilities[[row_of[clip] for clip in clips]],
        speakers=known_speakers([speakers.get(clip) for clip in clips]),
        details={clip.clip: clip for clip in manifest.clips if clip.clip in row_of},
        recorded=recorded,
    )

"""The stages as functions of plain paths, for notebooks and scripts: `mertool.extract(...)`, `mertool.predict(...)`.

Paths are texts or `pathlib.Path`. Options are keywords with the names and defaults of the options of the command, with
`_` for `-`; the classes in `mertool.options` describe them. An error of the user raises `mertool.errors.MertoolError`.
"""

import csv
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mertool.errors import MertoolError, MertoolWarning, suggest
from mertool.manifest import Manifest
from mertool.options import Options
from mertool.runs import Run
from mertool.sources import read_sources

if TYPE_CHECKING:
    from mertool.extract import ExtractResult
    from mertool.predictions import AnyPredictions

PathLike = str | os.PathLike[str]
StageOptions = TypeVar("StageOptions", bound=Options)
MAX_LISTED = 5  # clips that a warning names


def extract(source: PathLike, output: PathLike, modality: str, **options: Any) -> "ExtractResult":
    """Write features of the clips of a manifest or a folder into the store `output`; finished clips are skipped.

    modality: audio, video, faces or text. options: those of `mertool extract`, as `encoder="hubert-base"`.
    """
    from mertool.extract import extract as run_stage
    from mertool.options.extract import ExtractOptions

    return run_stage(
        Manifest.read(Path(source)), Path(output), _make_options(ExtractOptions, {**options, "modality": modality})
    )


def probe_layers(store: PathLike, manifest: PathLike, output: PathLike, **options: Any) -> Run:
    """Probe the layers of a pooled store, and recommend a window of them; return the run in the folder `output`."""
    from mertool.options.probe_layers import ProbeLayersOptions
    from mertool.probe_layers import probe_layers as run_stage

    stage_options = _make_options(ProbeLayersOptions, options)
    run, _ = run_stage(
        Path(store), Manifest.read(Path(manifest)), Path(output), options=stage_options, progress=_silent_progress
    )
    return run


def finetune(source: PathLike, output: PathLike, **options: Any) -> Run:
    """Train adapters in layers of a speech encoder; return the run in the folder `output`.

    Give `probe="runs/probe"` or `layers="16-21"`. With `compare="lora,dora"` the run compares methods.
    """
    from mertool.finetune import compare, finetune
    from mertool.options.finetune import FinetuneOptions

    stage_options = _make_options(FinetuneOptions, options)
    run_stage = compare if stage_options.compare else finetune
    run, _ = run_stage(Manifest.read(Path(source)), Path(output), stage_options, progress=_silent_progress)
    return run


def align(
    audio: PathLike,
    video: PathLike,
    output: PathLike,
    *,
    aligned: PathLike | None = None,
    manifest: PathLike | None = None,
    **options: Any,
) -> Run:
    """Train a visual encoder into the acoustic space; return the run in the folder `output`.

    aligned: the store of aligned features to write; default: aligned.h5 beside `video`. manifest: labels, which measure
    the gain and train nothing.
    """
    from mertool.align import align as run_stage
    from mertool.options.align import AlignOptions

    run, _ = run_stage(
        Path(audio),
        Path(video),
        Path(output),
        aligned=Path(aligned) if aligned else Path(video).with_name("aligned.h5"),
        manifest=Manifest.read(Path(manifest)) if manifest else None,
        options=_make_options(AlignOptions, options),
        progress=_no_steps,
    )
    return run


def fuse(stores: Sequence[PathLike], manifest: PathLike, output: PathLike, **options: Any) -> Run:
    """Train fusion over the stores; return the run in the folder `output`, which is the bundle of `predict`."""
    from mertool.fuse import fuse as run_stage
    from mertool.options.fuse import FuseOptions

    stage_options = _make_options(FuseOptions, options)
    paths = list(map(Path, _as_list(stores)))
    run, _ = run_stage(paths, Manifest.read(Path(manifest)), Path(output), options=stage_options, progress=_no_steps)
    return run


def predict(
    bundle: PathLike, sources: PathLike | Sequence[PathLike], output: PathLike | None = None, **options: Any
) -> "AnyPredictions":
    """Predict the clips of folders, manifests and media files with a bundle.

    output: predictions file to write (.csv or .jsonl); features are cached beside it. Without it nothing is kept.
    Clips without any modality are not in the result; a warning names them. Raises MertoolError if no clip is left.
    """
    from mertool.options.predict import PredictOptions
    from mertool.predict import predict as run_stage
    from mertool.predictions import read_predictions

    stage_options = _make_options(PredictOptions, options)
    paths = list(map(Path, _as_list(sources)))
    with _output_file(output) as path:
        result = run_stage(Path(bundle), read_sources(paths), path, options=stage_options, inputs=paths)
        reasons = _describe_failures(result.failures)
        if not result.predicted:
            raise MertoolError(f"no clip could be predicted: {reasons}")
        if result.unreadable:
            message = f"{result.unreadable} of {result.clips} clips were not predicted: {reasons}"
            warnings.warn(message, MertoolWarning, stacklevel=3)
        return read_predictions(path)


def evaluate(
    predictions: PathLike | Sequence[PathLike], labels: PathLike, output: PathLike | None = None, **options: Any
) -> dict[str, Any]:
    """Return the scores of one predictions file, or of two with a paired test; with `output` also write them there."""
    from mertool.evaluate import evaluate as run_stage
    from mertool.evaluate import read_truth
    from mertool.options.evaluate import EvaluateOptions

    stage_options = _make_options(EvaluateOptions, options)
    paths = list(map(Path, _as_list(predictions)))
    truth = read_truth(Path(labels), paths, stage_options.classes)
    return run_stage(paths, truth, Path(output) if output else None, stage_options)


def report(runs: PathLike | Sequence[PathLike], output: PathLike, **options: Any) -> dict[str, Any]:
    """Write the page `output` (.html) of runs and of JSON files of `evaluate`, and its tables; return its content."""
    from mertool.options.report import ReportOptions
    from mertool.report import report as run_stage

    stage_options = _make_options(ReportOptions, options)
    return run_stage(list(map(Path, _as_list(runs))), Path(output), stage_options).document


def _make_options(kind: type[StageOptions], given: dict[str, Any]) -> StageOptions:
    """Return the options of a stage; an unknown name is a TypeError that suggests the right one."""
    valid = [field.name for field in fields(kind)]
    for name in given:
        if name not in valid:
            raise TypeError(f"unknown option '{name}': {suggest(name, valid)}valid: {', '.join(valid)}")
    return kind(**{name: _plain(value) for name, value in given.items()})


def _plain(value: Any) -> Any:
    """Return paths of any kind as `Path`, also in lists; other values as they are."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return Path(value) if isinstance(value, os.PathLike) else value


def _as_list(paths: PathLike | Sequence[PathLike]) -> Sequence[PathLike]:
    return [paths] if isinstance(paths, str | os.PathLike) else paths


@contextmanager
def _output_file(output: PathLike | None) -> Iterator[Path]:
    """Yield the path of the predictions; one in a temporary folder where none is given."""
    if output is not None:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory(prefix="mertool-") as folder:
        yield Path(folder) / "predictions.csv"


def _describe_failures(path: str | None) -> str:
    """Name the first clips of a list of failures, with their reasons."""
    if path is None:
        return "no modality of the bundle is in them"
    with open(path, newline="", encoding="utf-8") as file:
        rows = [f"{row['clip']} ({row['modality']}: {row['reason']})" for row in csv.DictReader(file)]
    return ", ".join(rows[:MAX_LISTED]) + (", ..." if len(rows) > MAX_LISTED else "")


def _no_steps(*_: int) -> None:
    """Show no progress."""


@contextmanager
def _silent_progress(*_: str) -> Iterator[Any]:
    """Give stages of several parts a function that shows no progress."""
    yield _no_steps

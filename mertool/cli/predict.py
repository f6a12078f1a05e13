"""`mertool predict`: raw clips in, labels out."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.arguments import Json, MaxFailed, Quiet, SourcesArgument
from mertool.cli.console import check_failed, echo, print_json, suggest_next, warn
from mertool.cli.interrupts import keeping, kept_features
from mertool.cli.progress import progress
from mertool.cli.source import tell_notes
from mertool.cli.tables import table
from mertool.errors import count_of
from mertool.interop.submission import list_names
from mertool.options.predict import PredictOptions
from mertool.runs import Run
from mertool.sources import read_sources

EXAMPLE = "Example: mertool predict runs/fusion folder-of-videos -o predictions.csv"


def predict(
    *,
    bundle: Annotated[Path, typer.Argument(help="Run of `mertool fuse`.")],
    sources: SourcesArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Predictions to write: .csv or .jsonl.")],
    options: PredictOptions,
    max_failed: MaxFailed = 0.1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict the emotion of raw clips, from folders, manifests or media files, with the bundle only.

    Every clip with at least one readable modality gets a row; the others are listed in NAME.failures.csv. Features
    are cached beside the output, so a killed run resumes and a second run is quick. Transcripts come from the
    manifest, from the bundle's own speech recogniser, or from --asr; without any, text counts as missing.
    """
    # Before the stage is imported, because that takes seconds.
    from mertool.predictions import check_suffix, feature_cache_folder

    check_suffix(output)
    clips = read_sources(sources)
    tell_notes(clips.notes)
    Run.read(bundle, "fuse")
    from mertool.predict import predict as run_stage

    with keeping(lambda: kept_features(feature_cache_folder(output))), progress("predict", quiet) as update:
        result = run_stage(bundle, clips, output, options=options, inputs=sources, on_progress=update)
    if as_json:
        print_json({**asdict(result), "failed_share": result.failed_share})
    elif not quiet:
        print_result(result)
    if result.guessed:
        warn(
            f"note: candidates that cannot be read have the label '{result.majority_class}', the most frequent class "
            f"in training: {list_names(result.guessed)}; the reasons are in {result.failures}"
        )
    if options.submission == "mer2023" and options.valence is None:
        warn("note: the column valence of the submission is 0: give predictions of it with --valence FILE")
    check_failed(result.failed_share, result.predicted, max_failed=max_failed, reasons=str(result.failures))


def print_result(result: Any) -> None:
    """Print how many clips were scored from which modalities, and the files that were written."""
    title = f"{result.predicted} of {count_of(result.clips, 'clip')} scored"
    table(title, ["modalities present", "clips"], [[name, count] for name, count in result.modalities.items()])
    if result.missing:
        echo("missing: " + ", ".join(f"{count} {reason}" for reason, count in result.missing.items()))
    if result.unreadable:
        echo(f"{count_of(result.unreadable, 'clip')} could not be scored")
    if result.failures:
        echo(f"failures: {result.failures}")
    echo(f"predictions: {result.output}")
    echo(f"features: {result.features}")
    if result.submission:
        echo(f"submission: {result.submission}")
    suggest_next(["evaluate", result.output, "--labels", "MANIFEST"])

"""`mertool predict`: raw clips in, labels out."""

from pathlib import Path
from typing import Annotated

import typer

from mertool.cli.console import (
    ClipTimeout,
    Device,
    Json,
    MaxFailed,
    Quiet,
    Seed,
    SourceArgument,
    Workers,
    check_failed,
    echo,
    print_json,
    progress,
    suggest_next,
    table,
)
from mertool.manifest import Manifest
from mertool.options.predict import PredictOptions
from mertool.runs import Run

EXAMPLE = "Example: mertool predict runs/fusion folder-of-videos -o predictions.csv"


def predict(
    bundle: Annotated[Path, typer.Argument(help="Run of `mertool fuse`.")],
    source: SourceArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Predictions to write: .csv or .jsonl.")],
    asr: Annotated[
        str | None,
        typer.Option(help="Recognise speech in clips without a transcript: a Whisper, as whisper-large-v3."),
    ] = None,
    submission: Annotated[
        str | None, typer.Option(help="Also write the labels in a challenge's form: mer2024 (name,discrete).")
    ] = None,
    candidates: Annotated[
        Path | None, typer.Option(help="CSV with the names that the submission must hold, as candidate_20000.csv.")
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
    clip_timeout: ClipTimeout = 120.0,
    max_failed: MaxFailed = 0.1,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score a folder or manifest of raw clips with the bundle alone.

    Every clip with at least one readable modality gets a row; the others stand in NAME.failures.csv. Features
    are cached beside the output: a killed run resumes, a second one is quick. Transcripts come from a manifest,
    from the bundle's own speech recogniser, or from --asr; without any a clip does without.
    """
    clips = Manifest.read(source)
    Run.read(bundle, "fuse")
    from dataclasses import asdict

    from mertool.devices import seed_everything
    from mertool.predict import predict as run_stage

    seed_everything(seed)
    options = PredictOptions(
        device=device,
        workers=workers,
        clip_timeout=clip_timeout,
        asr=asr,
        submission=submission,
        candidates=candidates,
    )
    with progress("predict", quiet) as update:
        result = run_stage(bundle, clips, output, options, on_progress=update)
    if as_json:
        print_json({**asdict(result), "failed_share": result.failed_share})
    elif not quiet:
        table(
            f"{result.predicted} of {result.clips} clips scored",
            ["modalities present", "clips"],
            [[name, count] for name, count in result.modalities.items()],
        )
        if result.unreadable:
            echo(f"{result.unreadable} clips could not be scored")
        if result.failures:
            echo(f"failures: {result.failures}")
        echo(f"predictions: {result.output}")
        echo(f"features: {result.features}")
        if result.submission:
            echo(f"submission: {result.submission}")
        suggest_next("evaluate", result.output, "--labels", "MANIFEST")
    check_failed(result.failed_share, result.predicted, max_failed, str(result.failures))

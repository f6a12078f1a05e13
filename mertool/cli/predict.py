"""`mertool predict`: raw clips in, labels out."""

from pathlib import Path
from typing import Annotated

import typer

from mertool.cli.common import (
    ClipTimeout,
    Device,
    Json,
    MaxFailed,
    Quiet,
    Seed,
    Source,
    Workers,
    check_failed,
    follow,
    print_json,
    progress,
    say,
    table,
)
from mertool.manifest import Manifest

EXAMPLE = "Example: mertool predict runs/fusion folder-of-videos -o predictions.csv"


def predict(
    bundle: Annotated[Path, typer.Argument(help="Run of `mertool fuse`.")],
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="Predictions to write: .csv or .jsonl.")],
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
    are cached beside the output. Transcripts come from a manifest; a folder has none, and does without.
    """
    clips = Manifest.read(source)
    from dataclasses import asdict

    from mertool.devices import seed_everything
    from mertool.predict import PredictOptions
    from mertool.predict import predict as run_stage

    seed_everything(seed)
    with progress("predict", quiet) as update:
        result = run_stage(
            bundle,
            clips,
            output,
            PredictOptions(device, workers, clip_timeout),
            lambda _, *state: update(*state),
        )
    if as_json:
        print_json({**asdict(result), "failed_share": result.failed_share})
    elif not quiet:
        table(
            f"{result.predicted} of {result.clips} clips scored",
            ["modalities present", "clips"],
            [[name, count] for name, count in result.modalities.items()],
        )
        if result.unreadable:
            say(f"{result.unreadable} clips could not be scored")
        if result.failures:
            say(f"failures: {result.failures}")
        say(f"predictions: {result.output}")
        follow("evaluate", result.output, "--labels", "MANIFEST")
    check_failed(result.failed_share, result.predicted, max_failed, str(result.failures))

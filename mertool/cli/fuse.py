"""`mertool fuse`: one classifier over all modalities."""

from pathlib import Path
from typing import Annotated

import typer

from mertool.cli.common import (
    MER_CLASSES,
    Classes,
    Device,
    Json,
    ManifestOption,
    Overwrite,
    Quiet,
    RunOutput,
    Seed,
    follow,
    parse_folds,
    print_json,
    progress,
    say,
    show_score,
    table,
)
from mertool.manifest import Manifest, parse_classes

EXAMPLE = "Example: mertool fuse features/acoustic.h5 features/aligned.h5 features/text.h5 -m clips.csv -o runs/fusion"


def fuse(
    stores: Annotated[list[Path], typer.Argument(help="Pooled feature stores, one per modality or feature.")],
    manifest: ManifestOption,
    output: RunOutput,
    head: Annotated[str, typer.Option(help="Fusion head: attention or concat.")] = "attention",
    folds: Annotated[
        str | None, typer.Option(help="Parts of the cross-validation, or their file; default: the adapters', else 5.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Members per fold.")] = 3,
    width: Annotated[int, typer.Option(min=1, help="Hidden size of the head.")] = 128,
    dropout: Annotated[float, typer.Option(help="Dropout in the head.")] = 0.3,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training clips; fixed, none is chosen.")] = 60,
    batch: Annotated[int, typer.Option(min=1, help="Clips per step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    classes: Classes = MER_CLASSES,
    device: Device = "auto",
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train fusion over any number of stores, folds x seeds, and save a bundle for `predict`.

    Each store is also scored alone, on the clips that have it.
    """
    parts = None if folds is None else parse_folds(folds)
    labelled = Manifest.read(manifest)
    from mertool.fuse import FuseOptions
    from mertool.fuse import fuse as run_stage

    options = FuseOptions(
        head,
        parts,
        seeds,
        width,
        dropout,
        epochs,
        batch,
        learning_rate,
        seed,
        device,
        parse_classes(classes),
        overwrite,
    )
    with progress("fuse", quiet, "epochs") as update:
        run, reused = run_stage(stores, labelled, output, options, update)
    metrics = run.metrics
    if as_json:
        print_json({"run": str(output), "reused": reused, **metrics})
    elif not quiet:
        rows = [
            [name, scores["clips"], *(show_score(scores[metric]) for metric in ("waf", "accuracy", "uar"))]
            for name, scores in metrics["cross_validation"].items()
        ]
        rows.append(
            ["always the largest class", metrics["clips"], f"{100 * metrics['always_largest_class']:.1f}", "", ""]
        )
        table(
            f"Cross-validation: {metrics['folds']}, {metrics['members']} members; per cent, 95 % intervals over clips",
            ["features", "clips", "weighted F1", "accuracy", "UAR"],
            rows,
        )
        say(f"bundle: {output}{' (reused, nothing changed)' if reused else ''}")
        say(f"plots: {output / 'scores.png'} {output / 'confusion.png'}")
        follow("predict", output, "FOLDER", "-o", "predictions.csv")

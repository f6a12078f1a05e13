"""`mertool evaluate`: scores of predictions, a paired test of two, and what a bundle loses in harder conditions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.console import (
    ClipTimeout,
    Device,
    Json,
    Quiet,
    Seed,
    Workers,
    echo,
    format_gain,
    format_score,
    print_json,
    progress,
    table,
)
from mertool.manifest import Manifest
from mertool.options.evaluate import EvaluateOptions

EXAMPLE = "Example: mertool evaluate predictions.csv --labels clips.csv -o metrics.json"
METRICS = {"waf": "weighted F1", "accuracy": "accuracy", "uar": "UAR", "macro_f1": "macro F1"}


def evaluate(
    predictions: Annotated[list[Path], typer.Argument(help="One predictions file, or two for a paired test.")],
    labels: Annotated[Path, typer.Option("--labels", "-l", help="Manifest CSV with the true labels.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the scores as JSON here.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Run of `mertool fuse` that predicted, for --missing and --noise.")
    ] = None,
    missing: Annotated[
        list[str] | None, typer.Option(help="Score without this modality (audio, video or text), may be given often.")
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|babble", help="Score with noise at 5 to 10 dB: sounds, or the manifest's clips."),
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
    clip_timeout: ClipTimeout = 120.0,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Weighted F1, accuracy, UAR, macro F1 with 95 % intervals, per class, calibration, and the confusion matrix.

    With --missing and --noise the same bundle is scored on the same clips without a modality, and with noise in
    the sound and the picture blurred, as MER-NOISE does; features come from the folder beside the predictions.
    """
    truth = Manifest.read(labels)
    from mertool.evaluate import evaluate as run_stage

    options = EvaluateOptions(
        bundle=bundle,
        missing=tuple(dict.fromkeys(missing or [])),
        noise=noise,
        seed=seed,
        device=device,
        workers=workers,
        clip_timeout=clip_timeout,
    )
    with progress("evaluate", quiet) as update:
        result = run_stage(predictions, truth, output, options, on_progress=update)
    if as_json:
        print_json(result)
    elif not quiet:
        _report(result, output)


def _report(result: dict[str, Any], output: Path | None) -> None:
    rows = [
        [system["predictions"], *(format_score(system[name]) for name in METRICS), _error(system)]
        for system in result["systems"]
    ]
    title = f"{result['clips']} labelled clips; per cent, 95 % intervals over {result['intervals']}"
    table(title, ["predictions", *METRICS.values(), "calibration error"], rows)
    for system in result["systems"]:
        rows = [
            [row["class"], *(f"{100 * row[name]:.1f}" for name in ("precision", "recall", "f1")), row["clips"], *counts]
            for row, counts in zip(system["per_class"], system["confusion"], strict=True)
        ]
        heads = [f"as {name}" for name in result["classes"]]
        table(system["predictions"], ["class", "precision", "recall", "F1", "clips", *heads], rows)
    if result["labelled_without_prediction"]:
        echo(f"{result['labelled_without_prediction']} labelled clips have no prediction and are not scored")
    if "paired" in result:
        gain, exact = result["paired"]["waf"], result["paired"]["mcnemar"]
        echo(f"second minus first, weighted F1: {format_gain(gain)} (points, paired bootstrap)")
        echo(
            f"right in one only: first {exact['only_first']:.0f}, second {exact['only_second']:.0f} clips, "
            f"p = {exact['p']:.3f} (McNemar, exact)"
        )
    if "robustness" in result:
        _report_conditions(result["robustness"])
    if output:
        plots = ["confusion", "reliability", *(["robustness"] if "robustness" in result else [])]
        echo(f"metrics: {output}")
        echo("plots: " + " ".join(str(output.with_name(f"{output.stem}-{name}.png")) for name in plots))


def _report_conditions(conditions: list[dict[str, Any]]) -> None:
    rows = [
        [
            row["condition"],
            row["clips"],
            *(format_score(row[name]) for name in ("waf", "uar")),
            format_gain(row["difference"]) if number else "",
        ]
        for number, row in enumerate(conditions)
    ]
    heads = ["condition", "clips", "weighted F1", "UAR", "weighted F1 against as is, on the same clips"]
    table("The same bundle with less to go by", heads, rows)


def _error(system: dict[str, Any]) -> str:
    return f"{100 * system['calibration']['ece']:.1f}"

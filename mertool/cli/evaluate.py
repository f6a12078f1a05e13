"""`mertool evaluate`: scores of predictions, and a paired test of two."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.common import Json, Quiet, Seed, print_json, say, show_score, table
from mertool.errors import MertoolError
from mertool.files import check_writable
from mertool.manifest import Manifest

EXAMPLE = "Example: mertool evaluate predictions.csv --labels clips.csv -o metrics.json"


def evaluate(
    predictions: Annotated[list[Path], typer.Argument(help="One predictions file, or two for a paired test.")],
    labels: Annotated[Path, typer.Option("--labels", "-l", help="Manifest CSV with the true labels.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the scores as JSON here.")] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Weighted F1, accuracy, UAR with 95 % bootstrap intervals, per class, and the confusion matrix."""
    if len(predictions) > 2:
        raise MertoolError(f"{len(predictions)} predictions files: give one, or two for a paired test")
    if output:
        check_writable(output, labels, *predictions)
    truth = Manifest.read(labels)
    from mertool.evaluate import evaluate as run_stage

    result = run_stage(predictions, truth, output, seed)
    if as_json:
        print_json(result)
    elif not quiet:
        _report(result, output)


def _report(result: dict[str, Any], output: Path | None) -> None:
    rows = [
        [system["predictions"], *(show_score(system[metric]) for metric in ("waf", "accuracy", "uar"))]
        for system in result["systems"]
    ]
    title = f"{result['clips']} labelled clips; per cent, 95 % intervals over clips"
    table(title, ["predictions", "weighted F1", "accuracy", "UAR"], rows)
    for system in result["systems"]:
        rows = [
            [row["class"], *(f"{100 * row[name]:.1f}" for name in ("precision", "recall", "f1")), row["clips"], *counts]
            for row, counts in zip(system["per_class"], system["confusion"], strict=True)
        ]
        heads = [f"as {name}" for name in result["classes"]]
        table(system["predictions"], ["class", "precision", "recall", "F1", "clips", *heads], rows)
    if result["labelled_without_prediction"]:
        say(f"{result['labelled_without_prediction']} labelled clips have no prediction and are not scored")
    if "paired" in result:
        gain, exact = result["paired"]["waf"], result["paired"]["mcnemar"]
        say(
            f"second minus first, weighted F1: {100 * gain['difference']:+.1f} points "
            f"[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}], p = {gain['p']:.3f} (paired bootstrap)"
        )
        say(
            f"right in one only: first {exact['only_first']:.0f}, second {exact['only_second']:.0f} clips, "
            f"p = {exact['p']:.3f} (McNemar, exact)"
        )
    if output:
        say(f"metrics: {output}")
        say(f"plot: {output.with_name(output.stem + '-confusion.png')}")

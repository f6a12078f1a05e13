"""`mertool evaluate`: scores of predictions, a paired test of two, and scores without a modality or in noise."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.arguments import Json, Quiet
from mertool.cli.console import echo, format_gain, format_intervals, format_score, format_test, print_json
from mertool.cli.interrupts import keeping, kept_features
from mertool.cli.progress import progress
from mertool.cli.scores import CLASS_SCORES, TITLES, format_named_gain, score_cells
from mertool.cli.source import tell_notes
from mertool.cli.tables import table
from mertool.errors import count_of
from mertool.options.evaluate import EvaluateOptions

EXAMPLE = "Example: mertool evaluate predictions.csv --labels clips.csv -o metrics.json"


def evaluate(
    *,
    predictions: Annotated[list[Path], typer.Argument(help="One predictions file, or two for a paired test.")],
    labels: Annotated[
        Path,
        typer.Option(
            "--labels", "-l", help="True labels: a manifest, or a file that `mertool manifest --labels` reads."
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the scores as JSON here.")] = None,
    options: EvaluateOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compute weighted F1, accuracy, UAR and macro F1 with 95 % intervals, and scores per class and of calibration.

    Of a number (valence, arousal or sentiment) CCC, Pearson, MAE and MSE, of sentiment Acc-2, F1, Acc-5 and Acc-7, too.
    With --missing and --noise the same bundle is evaluated on the same clips without a modality, and with noisy audio
    and blurred video, as MER-NOISE does; features come from the folder beside the predictions.
    """
    from mertool.evaluate import evaluate as run_stage
    from mertool.evaluate import read_truth
    from mertool.predictions import feature_cache_folder

    truth = read_truth(labels, predictions, options.classes)
    tell_notes(truth.notes)
    noisy = feature_cache_folder(predictions[0])
    kept = (lambda: kept_features(noisy)) if options.noise else (lambda: "")
    with keeping(kept), progress("evaluate", quiet) as update:
        result = run_stage(predictions, truth, output, options, on_progress=update)
    if as_json:
        print_json(result)
    elif not quiet:
        print_result(result, output)


def print_result(result: dict[str, Any], output: Path | None) -> None:
    """Print the scores of each system, the tests between two, the robustness, and the files that were written."""
    if result["classes"]:
        print_class_scores(result)
    else:
        print_number_scores(result)
    if result["labelled_without_prediction"]:
        echo(f"not scored for lack of a prediction: {count_of(result['labelled_without_prediction'], 'labelled clip')}")
    if "paired" in result:
        print_paired_tests(result["paired"])
    if "robustness" in result:
        print_robustness(result["robustness"])
    if output:
        echo(f"metrics: {output}")
        if result["plots"]:
            echo("plots: " + " ".join(result["plots"]))


def print_class_scores(result: dict[str, Any]) -> None:
    """Print the scores of each system over all classes, and per class."""
    rows = [
        [system["predictions"], *score_cells(system, list(CLASS_SCORES)), _format_calibration(system)]
        for system in result["systems"]
    ]
    intervals = format_intervals(result["intervals"], result["systems"][0]["waf"])
    title = f"{count_of(result['clips'], 'labelled clip')}; per cent, {intervals}"
    table(title, ["predictions", *CLASS_SCORES.values(), "calibration error"], rows)
    for system in result["systems"]:
        print_classes(system, result["classes"])


def print_number_scores(result: dict[str, Any]) -> None:
    """Print the scores of each system as a column, because sentiment has ten of them."""
    systems = result["systems"]
    names = [name for name in TITLES if name in systems[0]]
    rows = [[TITLES[name], *(score_cells(system, [name])[0] for system in systems)] for name in names]
    intervals = format_intervals(result["intervals"], systems[0]["ccc"])
    shares = "; Acc and F1 in per cent" if result["target"] == "sentiment" else ""
    title = f"{count_of(result['clips'], 'labelled clip')}, {result['target']}; {intervals}{shares}"
    table(title, ["score", *(system["predictions"] for system in systems)], rows)


def print_classes(system: dict[str, Any], classes: list[str]) -> None:
    """Print precision, recall and F1 of each class, and the confusion matrix."""
    rows = [
        [row["class"], *(_format_share(row[name]) for name in ("precision", "recall", "f1")), row["clips"], *counts]
        for row, counts in zip(system["per_class"], system["confusion"], strict=True)
    ]
    columns = ["class", "precision", "recall", "F1", "clips", *(f"as {name}" for name in classes)]
    table(system["predictions"], columns, rows)
    averaged = system["averaged_classes"]
    if averaged["uar"] != classes:
        absent = f", in neither: {', '.join(averaged['absent'])}" if averaged["absent"] else ""
        echo(
            f"macro F1 is over the {len(averaged['macro_f1'])} classes in truth or prediction, UAR over the "
            f"{len(averaged['uar'])} with clips{absent}; `-` is not defined"
        )


def print_paired_tests(paired: dict[str, Any]) -> None:
    """Print the tests of two systems on the same clips."""
    for name, gain in paired.items():
        if name in TITLES:
            unit = "points, " if name in CLASS_SCORES else ""
            echo(f"second minus first, {TITLES[name]}: {format_named_gain(name, gain)} ({unit}{format_test(gain)})")
    if exact := paired.get("mcnemar"):
        echo(
            f"right in one only: first {exact['only_first']:.0f}, second {exact['only_second']:.0f} clips, "
            f"p = {exact['p']:.3f} (McNemar, exact)"
        )


def print_robustness(conditions: list[dict[str, Any]]) -> None:
    """Print the scores under each condition; the first one is that of the predictions."""
    rows = [
        [
            row["condition"],
            row["clips"],
            *(format_score(row[name]) for name in ("waf", "uar")),
            format_gain(row["difference"]) if number else "",
        ]
        for number, row in enumerate(conditions)
    ]
    columns = ["condition", "clips", "weighted F1", "UAR", "weighted F1 against as is, on the same clips"]
    table("The same bundle without a modality and in noise", columns, rows)
    for row in conditions:
        for reason, clips in row["not_scored"].items():
            echo(f"{row['condition']}: not scored, because {reason}: {len(clips)} (first: {clips[0]})")


def _format_share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _format_calibration(system: dict[str, Any]) -> str:
    return f"{100 * system['calibration']['ece']:.1f}"

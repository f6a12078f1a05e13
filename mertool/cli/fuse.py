"""`mertool fuse`: one classifier over all modalities."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.arguments import Json, ManifestOption, Quiet, RunOutput
from mertool.cli.console import (
    check_stores,
    echo,
    format_gain,
    format_intervals,
    format_run,
    format_score,
    print_json,
    suggest_next,
    warn,
)
from mertool.cli.progress import progress
from mertool.cli.scores import TITLES, format_named_gain, main_score, score_cells
from mertool.cli.source import read_source
from mertool.cli.tables import table
from mertool.errors import count_of
from mertool.options.fuse import FuseOptions
from mertool.options.shared import EMOTION

SCORES = {"waf": "weighted F1", "accuracy": "accuracy", "uar": "UAR"}
NUMBER_COLUMNS = ("ccc", "pearson", "mae", "mse", "acc2_with_zero", "acc2_without_zero", "acc7")
EXAMPLE = "Example: mertool fuse features/acoustic.h5 features/aligned.h5 features/text.h5 -m clips.csv -o runs/fusion"


def fuse(
    *,
    stores: Annotated[
        list[Path], typer.Argument(help="Feature stores, pooled or of frames; several of one modality too.")
    ],
    manifest: ManifestOption,
    output: RunOutput,
    options: FuseOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train fusion over any number of stores, of emotion or a number, folds x seeds, and save a bundle for `predict`.

    Each store is also scored by itself, on the clips that have it; --no-unimodal leaves this out. Clips of the split
    test are predicted and scored as well, if the stores have them.
    """
    labelled = read_source(manifest)
    check_stores(*stores, *options.unlabelled)
    from mertool.fuse import fuse as run_stage

    with progress("fuse", quiet, "epochs of members") as update:
        run, reused = run_stage(stores, labelled, output, options=options, progress=update)
    if as_json:
        print_json({"run": str(output), "reused": reused, **run.metrics})
    elif not quiet:
        print_metrics(run.metrics, options.classes)
        echo(format_run("bundle", output, reused))
        if test := run.metrics.get("test"):
            echo(f"predictions of the test split: {output / test['predictions']}")
        echo(f"plots: {output / 'scores.png'} {output / ('confusion.png' if run.info['classes'] else 'numbers.png')}")
        suggest_next(["predict", output, "FOLDER", "-o", "predictions.csv"])
        suggest_next(["report", output, "-o", "report.html"])


def print_metrics(metrics: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Print the cross-validation, what was chosen, the gains, and the corrections of the bundle."""
    print_cross_validation(metrics)
    echo(f"selection: {metrics['selection']}")
    for name, chosen in metrics["chosen"].items():
        for choice in chosen.get("by_fold", [chosen] if "width" in chosen else []):
            echo(f"  {name}: {_format_choice(choice)}")
    if test := metrics.get("test"):
        print_test_split(test)
    if gain := metrics.get("against_best_part"):
        kind = "ensembles: " if "ensembles" in metrics else ""
        main = main_score(metrics["target"])
        unit = "points of weighted F1" if main == "waf" else TITLES[main]
        difference = f"{format_named_gain(main, gain)} {unit} ({gain['note']})"
        echo(f"{kind}fusion against {gain['part']} only, on the {gain['clips']} clips that have it: {difference}")
    if self_training := metrics.get("self_training"):
        print_self_training(self_training)
    if temperature := metrics["correction"].get("temperature"):
        print_temperature(temperature)
    if prior := metrics["correction"].get("prior"):
        print_prior(prior, classes)


def print_cross_validation(metrics: dict[str, Any]) -> None:
    """Print the scores of each store by itself, of all of them, and of the largest class."""
    if metrics["target"] != EMOTION:
        print_numbers(metrics)
        return
    ensembles, title = metrics.get("cross_validation"), "Cross-validation: "
    if ensembles is None:
        print_single_models(metrics)
        ensembles, title = metrics["ensembles"], "Ensemble of all repetitions, which is not MERTools' figure: "
    rows = [
        [name, scores["clips"], *(format_score(scores[metric]) for metric in SCORES)]
        for name, scores in ensembles.items()
    ]
    rows.append(["always the largest class", metrics["clips"], f"{100 * metrics['always_largest_class']:.1f}", "", ""])
    members = count_of(metrics["members"], "member")
    intervals = format_intervals(metrics["intervals"], next(iter(ensembles.values()))["waf"])
    title += f"{metrics['folds']}, {members}; per cent, {intervals}"
    table(title, ["features", "clips", *SCORES.values()], rows)


def print_numbers(metrics: dict[str, Any]) -> None:
    """Print the scores of a number, of each store by itself, of all of them, and of the mean of the training clips."""
    ensembles, mean = metrics["cross_validation"], metrics["always_mean"]
    names = [name for name in NUMBER_COLUMNS if name in mean]
    rows = [[name, scores["clips"], *score_cells(scores, names)] for name, scores in ensembles.items()]
    constant = {name: {"value": mean[name], "low": None, "high": None} for name in names}
    rows.append(["always the mean", metrics["clips"], *score_cells(constant, names)])
    intervals = format_intervals(metrics["intervals"], next(iter(ensembles.values()))["ccc"])
    shares = "; Acc in per cent" if metrics["target"] == "sentiment" else ""
    members = count_of(metrics["members"], "member")
    title = f"Cross-validation of {metrics['target']}: {metrics['folds']}, {members}; {intervals}{shares}"
    table(title, ["features", "clips", *(TITLES[name] for name in names)], rows)


def print_single_models(metrics: dict[str, Any]) -> None:
    """Print the statistic of MERTools, which is of single models."""
    single = metrics["single_models"]
    rows = [
        [name, scores["clips"], *(_format_spread(scores[metric]) for metric in SCORES)]
        for name, scores in single["scores"].items()
    ]
    title = (
        f"MERTools' figure: single models, mean over {single['folds']} folds, then mean and standard deviation over "
        f"repetitions ({single['repetitions']}); per cent, optimistic"
    )
    table(title, ["features", "clips", *SCORES.values()], rows)


def _format_spread(score: dict[str, Any]) -> str:
    """`48.2 ± 1.1` in per cent; without a spread of one repetition."""
    spread = "" if score["std"] is None else f" ± {100 * score['std']:.1f}"
    return f"{100 * score['mean']:.1f}{spread}"


def print_test_split(test: dict[str, Any]) -> None:
    """Print the scores of the clips of the split test, by all members."""
    if scores := test.get("scores"):
        row = ["all members", test["labelled"], *(format_score(scores[metric]) for metric in SCORES)]
        intervals = format_intervals(test["intervals"], scores["waf"])
        table(f"Split test: per cent, {intervals}", ["features", "clips", *SCORES.values()], [row])
    else:
        echo(f"split test: {count_of(test['clips'], 'clip')} predicted, none has a label")
    if test["without_features"]:
        echo(f"not predicted, since they are in no store: {count_of(test['without_features'], 'clip')} of split test")


def _format_choice(choice: dict[str, Any]) -> str:
    """`fold 0: width 128, dropout 0.3, learning rate 0.001, 40 epochs`, or without fold and epochs."""
    fold = f"fold {choice['fold']}: " if "fold" in choice else ""
    epochs = f", {count_of(choice['epochs'], 'epoch')}" if "epochs" in choice else ""
    parameters = "width {width}, dropout {dropout:g}, learning rate {learning_rate:g}".format(**choice)
    return fold + parameters + epochs


def print_self_training(report: dict[str, Any]) -> None:
    """Print the gain of self-training and the number of unlabelled clips in its last round."""
    last = report["rounds"][-1]
    clips = (
        f"{sum(last['taken']):.0f} of {count_of(report['unlabelled_clips'], 'unlabelled clip')} taken in the last round"
    )
    echo(f"self-training: {format_gain(last['gain'])} points of weighted F1; {clips}")
    if "note" in report:
        warn(f"note: {report['note']}, so this gain is optimistic")


def print_temperature(fit: dict[str, Any]) -> None:
    """Print the temperature, and the calibration before and after it."""
    uncalibrated, calibrated = fit["before"], fit["after"]
    echo(
        f"temperature: {fit['temperature']:.2f}, cross-entropy {uncalibrated['cross_entropy']:.2f} -> "
        f"{calibrated['cross_entropy']:.2f}, expected calibration error {100 * uncalibrated['ece']:.1f} -> "
        f"{100 * calibrated['ece']:.1f} per cent"
    )
    if calibrated["cross_entropy"] > uncalibrated["cross_entropy"]:
        warn("note: it did not help on folds that it was not fitted on: --no-calibrate leaves it out")


def print_prior(prior: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Print the estimated class frequencies, and how many labels they change."""
    shares = ", ".join(f"{name} {100 * share:.0f}" for name, share in zip(classes, prior["prior"], strict=True))
    changed = f"{prior['labels_changed']} of {prior['unlabelled_clips']} labels change"
    echo(f"shares of classes in unlabelled clips, per cent: {shares}; the bundle corrects for them: {changed}")
    if not prior["shifted"]:
        warn(f"note: they do not differ from those of the training clips (p = {prior['p']:.2f}): leave out --prior")

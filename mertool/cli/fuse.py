"""`mertool fuse`: one classifier over all modalities."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mertool import registry
from mertool.cli.console import (
    MER_CLASSES,
    Classes,
    Device,
    Json,
    ManifestOption,
    Overwrite,
    Quiet,
    RunOutput,
    Seed,
    check_stores,
    echo,
    format_gain,
    format_score,
    parse_folds,
    print_json,
    progress,
    suggest_next,
    table,
    warn,
)
from mertool.manifest import Manifest, parse_classes
from mertool.options.fuse import FuseOptions

EXAMPLE = "Example: mertool fuse features/acoustic.h5 features/aligned.h5 features/text.h5 -m clips.csv -o runs/fusion"


def fuse(
    stores: Annotated[
        list[Path], typer.Argument(help="Feature stores, pooled or of frames; several of one modality too.")
    ],
    manifest: ManifestOption,
    output: RunOutput,
    head: Annotated[
        str | None,
        typer.Option(help=f"Fusion head: {', '.join(registry.choices('fusion.heads'))}; default: attention."),
    ] = None,
    folds: Annotated[
        str | None, typer.Option(help="Parts of the cross-validation, or their file; default: the adapters', else 5.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Members per fold; default: 3, mertools 6.")] = None,
    search: Annotated[
        int, typer.Option(min=0, help="Draws of width, dropout and learning rate; each fold chooses on its own clips.")
    ] = 0,
    protocol: Annotated[
        str,
        typer.Option(help="nested, or mertools: the official one, whose scores are optimistic."),
    ] = "nested",
    width: Annotated[int, typer.Option(min=1, help="Hidden size of the head; --search draws its own.")] = 128,
    dropout: Annotated[float, typer.Option(help="Dropout in the head; --search draws its own.")] = 0.3,
    learning_rate: Annotated[float, typer.Option(help="Learning rate; --search draws its own.")] = 1e-3,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the training clips; default: 60, or with a search at most 100."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips per step.")] = 32,
    modality_dropout: Annotated[
        float | None, typer.Option(help="Share of modalities hidden in training; default: 0.15, mertools 0.")
    ] = None,
    feature_noise: Annotated[float, typer.Option(help="Normal noise on features, in deviations; 0 is off.")] = 0.0,
    mixup: Annotated[float, typer.Option(help="Mix clips, shares from Beta(A, A); 0 is off.")] = 0.0,
    label_smoothing: Annotated[float, typer.Option(help="Share of the label spread over all classes.")] = 0.0,
    class_weights: Annotated[bool, typer.Option(help="Let classes weigh alike, however rare.")] = False,
    contrast: Annotated[float, typer.Option(help="Weight of a contrastive loss between modalities; 0 is off.")] = 0.0,
    unlabelled: Annotated[
        list[Path] | None,
        typer.Option(help="Store of clips without labels to learn from too, one for each store; give it repeatedly."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=0, help="Rounds of self-training on unlabelled clips; default: 3, 0 is off.")
    ] = None,
    prior: Annotated[
        bool, typer.Option("--prior", help="Correct for the shares of classes that the unlabelled clips seem to have.")
    ] = False,
    calibrate: Annotated[bool, typer.Option(help="Fit a temperature, so that probabilities are true.")] = True,
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
    check_stores(*stores, *(unlabelled or ()))
    from mertool.fuse import fuse as run_stage

    options = FuseOptions(
        head=head,
        folds=parts,
        seeds=seeds,
        search=search,
        protocol=protocol,
        width=width,
        dropout=dropout,
        learning_rate=learning_rate,
        epochs=epochs,
        batch=batch,
        modality_dropout=modality_dropout,
        feature_noise=feature_noise,
        mixup=mixup,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        contrast=contrast,
        unlabelled=tuple(unlabelled or ()),
        rounds=rounds,
        prior=prior,
        calibrate=calibrate,
        seed=seed,
        device=device,
        classes=parse_classes(classes),
        overwrite=overwrite,
    )
    with progress("fuse", quiet, "epochs of members") as update:
        run, reused = run_stage(stores, labelled, output, options, update)
    metrics = run.metrics
    if as_json:
        print_json({"run": str(output), "reused": reused, **metrics})
    elif not quiet:
        _show(metrics, options.classes)
        echo(f"bundle: {output}{' (reused, nothing changed)' if reused else ''}")
        echo(f"plots: {output / 'scores.png'} {output / 'confusion.png'}")
        suggest_next("predict", output, "FOLDER", "-o", "predictions.csv")


def _show_choice(chosen: dict[str, Any]) -> str:
    """`fold 0: width 128, dropout 0.3, learning rate 0.001, 40 epochs`, or without fold and epochs."""
    before = f"fold {chosen['fold']}: " if "fold" in chosen else ""
    after = f", {chosen['epochs']} epochs" if "epochs" in chosen else ""
    form = "width {width}, dropout {dropout:g}, learning rate {learning_rate:g}".format(**chosen)
    return before + form + after


def _show(metrics: dict[str, Any], classes: tuple[str, ...]) -> None:
    rows = [
        [name, scores["clips"], *(format_score(scores[metric]) for metric in ("waf", "accuracy", "uar"))]
        for name, scores in metrics["cross_validation"].items()
    ]
    rows.append(["always the largest class", metrics["clips"], f"{100 * metrics['always_largest_class']:.1f}", "", ""])
    words = f"{metrics['folds']}, {metrics['members']} members; per cent, 95 % intervals over {metrics['intervals']}"
    table(
        f"Cross-validation: {words}",
        ["features", "clips", "weighted F1", "accuracy", "UAR"],
        rows,
    )
    echo(f"selection: {metrics['selection']}")
    for name, chosen in metrics["chosen"].items():
        for line in chosen.get("by_fold", [chosen] if "width" in chosen else []):
            echo(f"  {name}: {_show_choice(line)}")
    if gain := metrics.get("against_best_part"):
        where = f"on the {gain['clips']} clips that have it"
        echo(
            f"fusion against {gain['part']} alone, {where}: {format_gain(gain)} points of weighted F1 ({gain['note']})"
        )
    if taught := metrics.get("self_training"):
        last = taught["rounds"][-1]
        taken = f"{sum(last['taken']):.0f} of {taught['unlabelled_clips']} unlabelled clips taken in the last round"
        echo(f"self-training: {format_gain(last['gain'])} points of weighted F1; {taken}")
        if "note" in taught:
            warn(f"note: {taught['note']}, so this gain leans optimistic")
    _show_correction(metrics["correction"], classes)


def _show_correction(effect: dict[str, Any], classes: tuple[str, ...]) -> None:
    if found := effect.get("temperature"):
        before, after = found["before"], found["after"]
        echo(
            f"temperature: {found['temperature']:.2f}, cross-entropy {before['cross_entropy']:.2f} -> "
            f"{after['cross_entropy']:.2f}, expected calibration error {100 * before['ece']:.1f} -> "
            f"{100 * after['ece']:.1f} per cent"
        )
        if after["cross_entropy"] > before["cross_entropy"]:
            warn("note: it did not help on folds that it was not fitted on: --no-calibrate leaves it out")
    if found := effect.get("prior"):
        shares = ", ".join(f"{name} {100 * share:.0f}" for name, share in zip(classes, found["prior"], strict=True))
        changed = f"{found['labels_changed']} of {found['unlabelled_clips']} labels change"
        echo(f"shares of classes in unlabelled clips, per cent: {shares}; the bundle corrects for them: {changed}")
        if not found["shifted"]:
            warn(f"note: they do not differ from those of the training clips (p = {found['p']:.2f}): leave out --prior")

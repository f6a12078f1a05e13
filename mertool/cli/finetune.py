"""`mertool finetune`: adapters on the layers that carry emotion."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mertool import registry
from mertool.cli.console import (
    MER_CLASSES,
    Classes,
    ClipTimeout,
    Device,
    Dtype,
    FoldsOrFile,
    Json,
    Overwrite,
    Quiet,
    RunOutput,
    Seed,
    SourceArgument,
    Workers,
    echo,
    format_gain,
    format_score,
    is_first_process,
    parse_folds,
    print_json,
    progress,
    suggest_next,
    table,
    warn,
)
from mertool.errors import MertoolError
from mertool.features import describe_layers
from mertool.manifest import Manifest, parse_classes
from mertool.options.finetune import FinetuneOptions

EXAMPLE = "Example: mertool finetune clips.csv --probe runs/probe -o runs/acoustic --budget 1.6M"
METHODS = ", ".join(registry.choices("adapters.methods"))
LOSS, TRAINING = "Loss", "Training"


def finetune(
    source: SourceArgument,
    output: RunOutput,
    probe: Annotated[Path | None, typer.Option(help="A probe-layers run: its encoder and window.")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Blocks to adapt, counted from 1, as 16-21; instead of --probe's window.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Table name, hub id or folder; default: --probe's.")] = None,
    method: Annotated[
        str | None, typer.Option(help=f"PEFT method: {METHODS}; default: bottleneck, the paper's.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Bottleneck width, LoRA rank or prompts; default: the method's own.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Trainable parameters, as 1.6M or 800k: sets the size of the method.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Several methods, comma-separated: trains each, and tests them against the best.")
    ] = None,
    folds: FoldsOrFile = "5",
    epochs: Annotated[
        int, typer.Option(min=1, help="Passes over the training clips, at most.", rich_help_panel=TRAINING)
    ] = 30,
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without a better development loss.", rich_help_panel=TRAINING)
    ] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Labelled clips per step.", rich_help_panel=TRAINING)] = 16,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate of the adapters; default: the method's own.", rich_help_panel=TRAINING),
    ] = None,
    prefix_cache: Annotated[
        bool,
        typer.Option(
            "--prefix-cache/--no-prefix-cache",
            help="Start from stored frames below the first adapted block, or run every block each time.",
            rich_help_panel=TRAINING,
        ),
    ] = True,
    mask_weight: Annotated[
        float, typer.Option(min=0, help="Weight of the masked reconstruction; 0: none.", rich_help_panel=LOSS)
    ] = 0.1,
    mask_target: Annotated[
        str,
        typer.Option(
            help="What hidden frames are compared with: units (k-means), features or logmel.", rich_help_panel=LOSS
        ),
    ] = "units",
    target_layer: Annotated[
        int | None,
        typer.Option(
            min=0, help="Frozen layer of units or features; default: 3/4 of the way up.", rich_help_panel=LOSS
        ),
    ] = None,
    unlabelled: Annotated[
        int, typer.Option(min=0, help="Unlabelled clips that join the masked loss, at most.", rich_help_panel=LOSS)
    ] = 2000,
    class_weights: Annotated[str, typer.Option(help="none or balanced.", rich_help_panel=LOSS)] = "none",
    label_smoothing: Annotated[float, typer.Option(min=0, max=0.9, help="0: none.", rich_help_panel=LOSS)] = 0.0,
    classes: Classes = MER_CLASSES,
    device: Device = "auto",
    dtype: Dtype = "auto",
    workers: Workers = None,
    clip_timeout: ClipTimeout = 120.0,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train adapters in chosen layers of a speech encoder: one per fold, and one on all clips.

    Layer n is the output of transformer block n, counted from 1. A killed run goes on where it was. Several GPUs:
    accelerate launch -m mertool finetune ... (or torchrun).
    """
    parts, given = parse_folds(folds), layers is not None
    # What can be wrong is looked at before the libraries load that take seconds.
    methods = _methods(method, compare)
    encoder, layers = _from_probe(probe, encoder, layers)
    labelled = Manifest.read(source)
    from mertool import finetune as stage
    from mertool.adapters import methods as peft_methods

    options = FinetuneOptions(
        encoder=encoder,
        layers=layers,
        method=method or "bottleneck",
        size=size,
        budget=peft_methods.parse_budget(budget) if budget is not None else None,
        folds=parts,
        epochs=epochs,
        patience=patience,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
        mask_weight=mask_weight,
        mask_target=mask_target,
        target_layer=target_layer,
        unlabelled=unlabelled,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
        prefix_cache=prefix_cache,
        device=device,
        dtype=dtype,
        workers=workers,
        clip_timeout=clip_timeout,
        classes=parse_classes(classes),
        overwrite=overwrite,
    )
    first = is_first_process()
    hidden = quiet or not first

    def shown(title: str, unit: str) -> Any:
        return progress(title, hidden, unit)

    if compare is not None:
        run, reused = stage.compare(labelled, output, methods, options, shown)
    else:
        run, reused = stage.finetune(labelled, output, options, shown)
    if not first:
        return
    if as_json:
        print_json({"run": str(output), "reused": reused, **run.metrics})
    elif not quiet:
        if compare is not None:
            best = _show_comparison(run.metrics)
            adapter, plots = output.with_name(f"{output.name}-{best}"), [output / "methods.png"]
        else:
            _show(run.metrics)
            adapter, plots = output, [output / "losses.png", output / "layers.png"]
        if probe is not None and not given:
            warn("note: the probe chose the layers on these same clips, so the scores lean optimistic by that choice")
        echo(f"run: {output}{' (reused, nothing changed)' if reused else ''}")
        echo(f"plots: {', '.join(map(str, plots))}")
        suggest_next(
            "extract", "audio", source, "--adapter", adapter, "-o", "features/acoustic.h5", "--encoder", encoder
        )


def _show(metrics: dict[str, Any]) -> None:
    size = f" of size {metrics['size']}" if metrics["size"] else ""
    share = metrics["trainable"] / metrics["parameters"]
    adapted = f"{metrics['trainable']:,} trainable parameters ({share:.2%})"
    echo(f"{metrics['method']}{size} on {describe_layers(metrics['layers'])}: {adapted}")
    rows = [
        [name, *(format_score(metrics[key][metric]) for metric in ("waf", "accuracy", "uar"))]
        for key, name in (("frozen", "frozen encoder, linear probe"), ("adapted", "adapted, with its head"))
    ]
    table(_title(metrics), ["held-out clips", "weighted F1", "accuracy", "UAR"], rows)
    rows = [
        [
            layer,
            *(format_score(probe[which]["waf"]) for which in ("frozen", "adapted")),
            format_gain(probe["gain"]),
            f"{probe['cka']:.3f}",
        ]
        for layer, probe in metrics["probes"].items()
    ]
    columns = ["layer", "frozen, weighted F1", "adapted, weighted F1", "gain", "CKA"]
    table("the features alone: a linear probe of each layer", columns, rows)
    echo(f"gain: {format_gain(metrics['gain'])} with the head, which is not kept (paired bootstrap)")
    histories = metrics["history"].values()
    idle = sum(history["best_epoch"] == 0 for history in histories)
    if idle:
        warn(f"note: {idle} of {len(histories)} adapters change nothing: no epoch was better than the start")
    if metrics["skipped"]:
        warn(f"note: left out for lack of sound: {', '.join(sorted(metrics['skipped']))}")


def _show_comparison(metrics: dict[str, Any]) -> str:
    """Print the table of several methods; the best one."""
    rows = [
        ["frozen, linear probe", "", "", *(format_score(metrics["frozen"][name]) for name in ("waf", "uar")), "", ""]
    ]
    for method, found in metrics["methods"].items():
        rows.append(
            [
                method,
                f"{found['trainable']:,}",
                f"{found['share']:.2%}",
                *(format_score(found["adapted"][name]) for name in ("waf", "uar")),
                format_gain(found["gain"]),
                format_gain(found["against_best"]) if "against_best" in found else "best",
            ]
        )
    columns = ["method", "trainable", "share", "weighted F1", "UAR", "gain over frozen", "against the best"]
    table(_title(metrics), columns, rows)
    return str(metrics["best"])


def _title(metrics: dict[str, Any]) -> str:
    return (
        f"{metrics['clips']} clips, each held out once; {metrics['folds']}; per cent, "
        f"95 % intervals over {metrics['interval']}"
    )


def _methods(method: str | None, compare: str | None) -> tuple[str, ...]:
    """The methods to train; an unknown one is an error."""
    if compare is not None and method is not None:
        raise MertoolError("--compare names the methods to train: leave out --method")
    named = (method or "bottleneck",) if compare is None else tuple(filter(None, map(str.strip, compare.split(","))))
    for name in named:
        registry.check("adapters.methods", "PEFT method", name)
    if compare is not None and len(set(named)) < max(2, len(named)):
        raise MertoolError("--compare takes two methods or more, each once, as bottleneck,lora,bitfit")
    return named


def _from_probe(probe: Path | None, encoder: str | None, layers: str | None) -> tuple[str, str]:
    """The encoder and the layers, from the options or the probe run; a contradiction is an error."""
    if probe is None:
        if layers is None:
            raise MertoolError("which layers? Give --probe RUN (of `mertool probe-layers`) or --layers as 16-21")
        return encoder or "hubert-large-zh", layers
    from mertool.runs import Run

    run = Run.read(probe, "probe-layers", "window", "recipe", "origin")
    probed = run.info["origin"]["encoder"]
    if run.info["recipe"]["modality"] != "audio":
        raise MertoolError(f"{probe} probed {run.info['recipe']['modality']} features: finetune adapts speech encoders")
    if run.info["recipe"]["adapter"]:
        raise MertoolError(
            f"{probe} probed adapted features, but finetune adapts the frozen encoder: give a probe of features "
            "extracted without --adapter"
        )
    first, last = run.info["window"]
    named = (probed["name"], probed["checkpoint"])
    if encoder and encoder not in named and Path(encoder).resolve() != Path(probed["checkpoint"]):
        raise MertoolError(f"{probe} probed encoder '{probed['name']}', not '{encoder}': leave out --encoder")
    return probed["checkpoint"] if Path(probed["checkpoint"]).is_dir() else probed["name"], layers or f"{first}-{last}"

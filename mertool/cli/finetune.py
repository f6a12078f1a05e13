"""`mertool finetune`: adapters on the layers that carry emotion."""

from pathlib import Path
from typing import Annotated

import typer

from mertool.cli.common import (
    MER_CLASSES,
    Classes,
    ClipTimeout,
    Device,
    Folds,
    Json,
    Overwrite,
    Quiet,
    RunOutput,
    Seed,
    Source,
    Workers,
    follow,
    note,
    print_json,
    progress,
    say,
    show_score,
    table,
)
from mertool.errors import MertoolError
from mertool.manifest import Manifest, parse_classes

EXAMPLE = "Example: mertool finetune clips.csv --probe runs/probe -o runs/acoustic --method bottleneck"


def finetune(
    source: Source,
    output: RunOutput,
    probe: Annotated[Path | None, typer.Option(help="A probe-layers run: its encoder and window.")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Blocks to adapt, counted from 1, as 16-21; instead of --probe's window.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Table name, hub id or folder; default: --probe's.")] = None,
    method: Annotated[str, typer.Option(help="PEFT method: bottleneck or lora.")] = "bottleneck",
    size: Annotated[int | None, typer.Option(min=1, help="Bottleneck width (64) or LoRA rank (16).")] = None,
    folds: Folds = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training clips; fixed, none is chosen.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Clips per step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    classes: Classes = MER_CLASSES,
    device: Device = "auto",
    workers: Workers = None,
    clip_timeout: ClipTimeout = 120.0,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train adapters in chosen layers of a speech encoder: one per fold, and one on all clips."""
    labelled = Manifest.read(source)
    from mertool.finetune import FinetuneOptions
    from mertool.finetune import finetune as run_stage

    encoder, layers = _from_probe(probe, encoder, layers)
    options = FinetuneOptions(
        encoder,
        layers,
        method,
        size,
        folds,
        epochs,
        batch,
        learning_rate,
        seed=seed,
        device=device,
        workers=workers,
        clip_timeout=clip_timeout,
        classes=parse_classes(classes),
        overwrite=overwrite,
    )
    with progress("finetune", quiet, "epochs") as update:
        run, reused = run_stage(labelled, output, options, update)
    metrics = run.metrics
    if as_json:
        print_json({"run": str(output), "reused": reused, **metrics})
    elif not quiet:
        share = metrics["trainable"] / metrics["parameters"]
        adapted = f"{metrics['trainable']:,} trainable parameters ({share:.2%})"
        say(f"{metrics['method']} on layers {metrics['layers']}: {adapted}")
        rows = [
            [name, *(show_score(metrics[key][metric]) for metric in ("waf", "accuracy", "uar"))]
            for key, name in (("frozen", "frozen encoder, linear probe"), ("adapted", "adapted"))
        ]
        title = f"{metrics['clips']} clips, each held out once; {metrics['folds']}; per cent, 95 % intervals over clips"
        table(title, ["held-out clips", "weighted F1", "accuracy", "UAR"], rows)
        gain = metrics["gain"]
        interval = f"[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
        say(f"gain: {100 * gain['difference']:+.1f} points {interval}, p = {gain['p']:.3f} (paired bootstrap)")
        if metrics["skipped"]:
            note(f"note: left out for lack of sound: {', '.join(sorted(metrics['skipped']))}")
        say(f"run: {output}{' (reused, nothing changed)' if reused else ''}")
        say(f"plot: {output / 'losses.png'}")
        follow("extract", "audio", source, "--adapter", output, "-o", "features/acoustic.h5", "--encoder", encoder)


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
    first, last = run.info["window"]
    named = (probed["name"], probed["checkpoint"])
    if encoder and encoder not in named and Path(encoder).resolve() != Path(probed["checkpoint"]):
        raise MertoolError(f"{probe} probed encoder '{probed['name']}', not '{encoder}': leave out --encoder")
    return probed["checkpoint"] if Path(probed["checkpoint"]).is_dir() else probed["name"], layers or f"{first}-{last}"

"""`mertool align`: the visual encoder into the acoustic space."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mertool import registry
from mertool.cli.console import (
    MER_CLASSES,
    Classes,
    Device,
    Json,
    Overwrite,
    Quiet,
    RunOutput,
    Seed,
    check_stores,
    echo,
    format_gain,
    format_score,
    is_first_process,
    print_json,
    progress,
    suggest_next,
    table,
)
from mertool.manifest import Manifest, parse_classes
from mertool.options.align import AlignOptions

EXAMPLE = "Example: mertool align --audio features/acoustic.h5 --video features/video-frames.h5 -o runs/visual"
LOSSES = ", ".join(registry.choices("alignment.losses"))
WAYS = {"video_to_audio": "video finds its audio", "audio_to_video": "audio finds its video"}
RECALLS = ("recall@1", "recall@5", "recall@10")
TRAINING = "Training"


def align(
    audio: Annotated[Path, typer.Option(help="Pooled audio store: the anchor, which stays as it is.")],
    video: Annotated[Path, typer.Option(help="Frame store of `extract video --pool none`.")],
    output: RunOutput,
    aligned: Annotated[
        Path | None, typer.Option(help="Pooled store of aligned features; default: aligned.h5 beside --video.")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", "-m", help="Labels, to tell what a linear probe gains; they train nothing."),
    ] = None,
    loss: Annotated[str, typer.Option(help=f"What draws faces to their sound: {LOSSES}.")] = "infonce",
    false_negatives: Annotated[
        str | None,
        typer.Option(
            help="Clips that sound alike and are no negatives of each other: none, threshold (the most alike pairs) or "
            "pseudo-class (of one cluster); default: threshold where the loss has negatives."
        ),
    ] = None,
    width: Annotated[int, typer.Option(min=1, help="Channels inside the transformer over frames.")] = 256,
    blocks: Annotated[int, typer.Option(min=1, help="Its blocks.")] = 2,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Passes over the clips, at most; default: 3,000 steps, 100 at most.", rich_help_panel=TRAINING
        ),
    ] = None,
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without a better development loss.", rich_help_panel=TRAINING)
    ] = 10,
    batch: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Clips per step over all devices, each the others' negative; default: a sixteenth, 64 to 1,024.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=TRAINING)] = 5e-4,
    classes: Classes = MER_CLASSES,
    device: Device = "auto",
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a visual encoder into the acoustic space, without labels, on stores of any size.

    A fifth of the clips (at most 2,000) is held out for the scores, an eighth says when to stop. A killed run goes on
    where it was. Several GPUs: accelerate launch -m mertool align ... (or torchrun).
    """
    labelled = Manifest.read(manifest) if manifest else None
    check_stores(audio, video)
    from mertool.align import align as run_stage

    options = AlignOptions(
        loss=loss,
        false_negatives=false_negatives,
        width=width,
        blocks=blocks,
        epochs=epochs,
        patience=patience,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        classes=parse_classes(classes),
        overwrite=overwrite,
    )
    target = aligned or video.with_name("aligned.h5")
    first = is_first_process()
    with progress("align", quiet or not first, "steps") as update:
        run, reused = run_stage(
            audio, video, output, aligned=target, manifest=labelled, options=options, progress=update
        )
    if not first:
        return
    if as_json:
        print_json({"run": str(output), "aligned": str(target), "reused": reused, **run.metrics})
    elif not quiet:
        _show(run.metrics)
        echo(f"run: {output}{' (reused, nothing changed)' if reused else ''}")
        echo(f"plots: {output / 'loss.png'}, {output / 'recall.png'}")
        echo(f"aligned features: {target}")
        suggest_next("fuse", audio, target, "TEXT_STORE", "--manifest", manifest or "MANIFEST", "-o", "runs/fusion")


def _show(metrics: dict[str, Any]) -> None:
    scores, chance = metrics["held_out"], metrics["held_out"]["chance"]
    epochs = f"best of {len(metrics['loss'])} epochs: {metrics['best_epoch']}"
    echo(f"trained on {metrics['train_clips']} clips, stopped by {metrics['development_clips']} others; {epochs}")
    rows = []
    for way, name in WAYS.items():
        rank = scores[way]["median_rank"]
        median = f"{rank['value']:.1f} [{rank['low']:.1f}, {rank['high']:.1f}]"
        rows.append([name, *(format_score(scores[way][recall]) for recall in RECALLS), median])
    rows.append(["chance", *(f"{100 * chance[recall]:.1f}" for recall in RECALLS), f"{chance['median_rank']:.1f}"])
    title = f"{scores['clips']} held-out clips; per cent, 95 % intervals over queries"
    table(title, ["retrieval", *RECALLS, "median rank"], rows)
    cka, uniform = scores["cka"], scores["uniformity"]
    echo(f"linear CKA with the sound {cka['value']:.3f} (of shuffled clips {cka['shuffled']:.3f})")
    echo(
        f"alignment {scores['alignment']:.3f} (0 the same, 2 unrelated), uniformity {uniform['video']:.2f} "
        f"(of the sound {uniform['audio']:.2f})"
    )
    if "probe" in metrics:
        probe = metrics["probe"]
        rows = [
            [name, *(format_score(probe[name][metric]) for metric in ("waf", "accuracy", "uar"))]
            for name in ("unaligned", "aligned")
        ]
        title = f"{probe['clips']} labelled clips; {probe['folds']}; per cent, 95 % intervals over {probe['interval']}"
        table(title, ["linear probe", "weighted F1", "accuracy", "UAR"], rows)
        echo(f"gain: {format_gain(probe['gain'])} (paired bootstrap)")

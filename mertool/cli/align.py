"""`mertool align`: the visual encoder into the acoustic space."""

from pathlib import Path
from typing import Annotated

import typer

from mertool.cli.common import (
    Device,
    Json,
    Overwrite,
    Quiet,
    RunOutput,
    Seed,
    follow,
    print_json,
    progress,
    say,
    show_score,
    table,
)

EXAMPLE = "Example: mertool align --audio features/acoustic.h5 --video features/video-frames.h5 -o runs/visual"


def align(
    audio: Annotated[Path, typer.Option(help="Pooled audio store: the anchor, which stays as it is.")],
    video: Annotated[Path, typer.Option(help="Frame store of `extract video --pool none`.")],
    output: RunOutput,
    aligned: Annotated[
        Path | None, typer.Option(help="Pooled store of aligned features; default: aligned.h5 beside --video.")
    ] = None,
    width: Annotated[int, typer.Option(min=1, help="Channels inside the aligner.")] = 128,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the clips; fixed, none is chosen.")] = 60,
    batch: Annotated[int, typer.Option(min=2, help="Clips per step, each the others' negative.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    device: Device = "auto",
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a visual encoder into the acoustic space by InfoNCE, without labels; a fifth of the clips is held out."""
    from mertool.align import AlignOptions
    from mertool.align import align as run_stage

    options = AlignOptions(width, epochs, batch, learning_rate, seed=seed, device=device, overwrite=overwrite)
    target = aligned or video.with_name("aligned.h5")
    with progress("align", quiet, "epochs") as update:
        run, reused = run_stage(audio, video, output, target, options, update)
    metrics = run.metrics
    if as_json:
        print_json({"run": str(output), "aligned": str(target), "reused": reused, **metrics})
    elif not quiet:
        held_out = metrics["held_out"]
        ways = {"video_to_audio": "video finds its audio", "audio_to_video": "audio finds its video"}
        rows = [
            [name, *(show_score(held_out[way][f"recall@{k}"]) for k in (1, 5)), held_out[way]["median_rank"]]
            for way, name in ways.items()
        ]
        chance = held_out["chance"]
        rows.append(["chance", f"{100 * chance['recall@1']:.1f}", f"{100 * chance['recall@5']:.1f}", ""])
        title = f"{held_out['clips']} held-out clips of {metrics['train_clips'] + held_out['clips']}; per cent"
        table(title, ["retrieval", "recall@1", "recall@5", "median rank"], rows)
        say(f"run: {output}{' (reused, nothing changed)' if reused else ''}")
        say(f"plot: {output / 'loss.png'}")
        say(f"aligned features: {target}")
        follow("fuse", audio, target, "TEXT_STORE", "--manifest", "MANIFEST", "-o", "runs/fusion")

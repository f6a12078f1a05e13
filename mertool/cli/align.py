"""`mertool align`: a visual encoder that maps frames into the acoustic space."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.arguments import Json, Quiet, RunOutput
from mertool.cli.console import (
    check_stores,
    echo,
    format_gain,
    format_intervals,
    format_run,
    format_score,
    format_test,
    is_first_process,
    print_json,
    suggest_next,
)
from mertool.cli.interrupts import keeping, kept_checkpoint
from mertool.cli.progress import progress
from mertool.cli.source import read_source
from mertool.cli.tables import table
from mertool.errors import count_of
from mertool.options.align import AlignOptions

EXAMPLE = (
    "Example: mertool align --audio features/acoustic.h5 --video features/video-frames.h5 -o runs/visual "
    "--manifest clips.csv"
)
DIRECTIONS = {"video_to_audio": "video finds its audio", "audio_to_video": "audio finds its video"}
RECALLS = ("recall@1", "recall@5", "recall@10")


def align(
    *,
    audio: Annotated[Path, typer.Option(help="Pooled audio store: the alignment target, which stays frozen.")],
    video: Annotated[Path, typer.Option(help="Frame store of `extract video --pool none`.")],
    output: RunOutput,
    aligned: Annotated[
        Path | None,
        typer.Option(help="Pooled store of aligned features to write.", show_default="aligned.h5 beside --video"),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            "-m",
            help="Labels. No labelled clip is encoded by an aligner that saw it; a linear probe shows the gain.",
        ),
    ] = None,
    options: AlignOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a visual encoder into the acoustic space, without labels, on stores of any size.

    A fifth of the clips (at most 2,000) is held out for the scores, and an eighth decides when training stops. A killed
    run resumes where it was. Several GPUs: accelerate launch -m mertool align ... (or torchrun).
    """
    labelled = read_source(manifest) if manifest else None
    check_stores(audio, video)
    from mertool.align import align as run_stage

    target = aligned or video.with_name("aligned.h5")
    reports = is_first_process()
    with keeping(lambda: kept_checkpoint(output)), progress("align", quiet or not reports, "steps") as update:
        run, reused = run_stage(
            audio, video, output, aligned=target, manifest=labelled, options=options, progress=update
        )
    if not reports:
        return
    if as_json:
        print_json({"run": str(output), "aligned": str(target), "reused": reused, **run.metrics})
    elif not quiet:
        print_metrics(run.metrics)
        echo(format_run("run", output, reused))
        echo(f"plots: {output / 'loss.png'}, {output / 'recall.png'}")
        echo(f"aligned features: {target}")
        stores = [audio, target, "TEXT_STORE"]
        suggest_next(["fuse", *stores, "--manifest", manifest or "MANIFEST", "-o", "runs/fusion"])


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print retrieval, similarity and, with labels, the probe of held-out clips."""
    epochs = f"best of {count_of(len(metrics['loss']), 'epoch')}: {metrics['best_epoch']}"
    clips = f"trained on {count_of(metrics['train_clips'], 'clip')}, stopped by {metrics['development_clips']} others"
    echo(f"{clips}; {epochs}")
    print_retrieval(metrics["held_out"])
    cka, uniformity = metrics["held_out"]["cka"], metrics["held_out"]["uniformity"]
    echo(f"linear CKA with the audio {cka['value']:.3f} (of shuffled clips {cka['shuffled']:.3f})")
    echo(
        f"alignment {metrics['held_out']['alignment']:.3f} (0 the same, 2 unrelated), uniformity "
        f"{uniformity['video']:.2f} (of the audio {uniformity['audio']:.2f})"
    )
    if "probe" in metrics:
        print_probe(metrics["probe"])


def print_retrieval(scores: dict[str, Any]) -> None:
    """Print recall and median rank of the retrieval between video and audio."""
    chance = scores["chance"]
    rows = []
    for direction, name in DIRECTIONS.items():
        median = f"{scores[direction]['median_rank']:.1f}"
        rows.append([name, *(format_score(scores[direction][recall]) for recall in RECALLS), median])
    rows.append(["chance", *(f"{100 * chance[recall]:.1f}" for recall in RECALLS), f"{chance['median_rank']:.1f}"])
    intervals = format_intervals(scores["interval"], scores["video_to_audio"]["recall@1"])
    title = f"{count_of(scores['clips'], 'held-out clip')}; per cent, {intervals}"
    table(title, ["retrieval", *RECALLS, "median rank"], rows)


def print_probe(probe: dict[str, Any]) -> None:
    """Print the scores of a linear probe before and after alignment."""
    rows = [
        [name, *(format_score(probe[name][metric]) for metric in ("waf", "accuracy", "uar"))]
        for name in ("unaligned", "aligned")
    ]
    intervals = f"per cent, {format_intervals(probe['interval'], probe['aligned']['waf'])}"
    title = f"{count_of(probe['clips'], 'labelled clip')}; {probe['folds']}; {intervals}"
    table(title, ["linear probe", "weighted F1", "accuracy", "UAR"], rows)
    if probe["aligners"]:
        aligners = count_of(probe["aligners"], "aligner")
        echo(f"each labelled clip is encoded by the one of {aligners} that was not trained on its fold")
    else:
        echo("labelled clips trained no aligner: enough others were there")
    echo(f"gain: {format_gain(probe['gain'])} ({format_test(probe['gain'])})")

"""`mertool extract audio|video|faces|text`: features of every clip into a store."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.console import (
    ClipTimeout,
    Device,
    Dtype,
    Json,
    MaxFailed,
    Overwrite,
    Quiet,
    Seed,
    SourceArgument,
    StoreOutput,
    Workers,
    check_failed,
    echo,
    format_bytes,
    format_duration,
    print_json,
    progress,
    suggest_next,
    warn,
)
from mertool.manifest import Manifest
from mertool.options.extract import ExtractOptions
from mertool.runs import Run

app = typer.Typer(help="Features of every clip into an HDF5 store.", no_args_is_help=True)

Encoder = Annotated[str | None, typer.Option(help="Table name (`mertool models`), hub id or local folder.")]
Layers = Annotated[
    str | None,
    typer.Option(
        help="all, last, 16-21, 0,6,12 or last-four-sum. Layer n is the output of transformer block n, 0 the embedding."
    ),
]
Pool = Annotated[str, typer.Option(help="mean: one vector per clip; none: keep frames.")]
Storage = Annotated[str, typer.Option(help="Number format in the store: float16 or float32.")]
Fps = Annotated[float, typer.Option(help="Face frames per second of video.")]
BatchSeconds = Annotated[
    float | None,
    typer.Option(help="Padded seconds of media per batch; 0 is one clip at a time. Default: what suits the device."),
]
Shard = Annotated[
    str | None, typer.Option(help="i/n: the i-th of n parts of the clips, for job arrays; `store merge` joins them.")
]
Engine = Annotated[str, typer.Option(help="local, or ray for several GPUs or machines (pip install ray).")]
RayAddress = Annotated[
    str | None, typer.Option(help="A running Ray: auto or HOST:PORT. Default: one on this machine, for this command.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Measure a few clips and say what would be done, how long and how large.")
]


SHORT = 5.0  # seconds


@app.command("audio", epilog="Example: mertool extract audio clips.csv -o features/audio.h5 --encoder hubert-base")
def audio(
    source: SourceArgument,
    output: StoreOutput,
    encoder: Encoder = None,
    layers: Layers = "all",
    pool: Pool = "mean",
    adapter: Annotated[
        Path | None, typer.Option(help="A finetune run; its training clips get the adapter that did not see them.")
    ] = None,
    storage: Storage = "float16",
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_seconds: BatchSeconds = None,
    workers: Workers = None,
    clip_timeout: ClipTimeout = 120.0,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    shard: Shard = None,
    max_failed: MaxFailed = 0.1,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Hidden states of a speech encoder (default: hubert-large-zh)."""
    options = locals()
    _extract("audio", options)


@app.command("video", epilog="Example: mertool extract video clips.csv -o features/video.h5 --encoder clip-vit-b16")
def video(
    source: SourceArgument,
    output: StoreOutput,
    encoder: Encoder = None,
    layers: Layers = "last",
    pool: Pool = "mean",
    aligner: Annotated[Path | None, typer.Option(help="An align run: features in the acoustic space.")] = None,
    faces: Annotated[
        Path | None,
        typer.Option(help="Store of `extract faces`, read and completed. Default: faces.h5 beside the output."),
    ] = None,
    keep_faces: Annotated[
        bool, typer.Option(help="Keep face crops for the next visual encoder: about 0.6 MB a second of video.")
    ] = True,
    fps: Fps = 4.0,
    storage: Storage = "float16",
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_seconds: BatchSeconds = None,
    workers: Workers = None,
    clip_timeout: ClipTimeout = 120.0,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    shard: Shard = None,
    max_failed: MaxFailed = 0.1,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Face track, square crop, image encoder (default: clip-vit-l14)."""
    options = locals()
    _extract("video", options)


@app.command("faces", epilog="Example: mertool extract faces clips.csv -o features/faces.h5")
def faces(
    source: SourceArgument,
    output: StoreOutput,
    fps: Fps = 4.0,
    device: Device = "auto",
    workers: Workers = None,
    clip_timeout: ClipTimeout = 120.0,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    shard: Shard = None,
    max_failed: MaxFailed = 0.1,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Face crops (224 x 224) once, for any number of visual encoders."""
    options = locals()
    _extract("faces", options)


@app.command("text", epilog="Example: mertool extract text clips.csv -o features/text.h5 --encoder bert-base")
def text(
    source: SourceArgument,
    output: StoreOutput,
    encoder: Encoder = None,
    asr: Annotated[
        str | None, typer.Option(help="A Whisper for clips without a transcript; the texts go beside the store.")
    ] = None,
    layers: Layers = "last",
    pool: Pool = "mean",
    storage: Storage = "float16",
    device: Device = "auto",
    dtype: Dtype = "auto",
    workers: Workers = None,
    clip_timeout: ClipTimeout = 120.0,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    shard: Shard = None,
    max_failed: MaxFailed = 0.1,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Hidden states of a text encoder or language model on the transcripts (default: roberta-large-zh)."""
    options = locals()
    _extract("text", options)


def _extract(modality: str, given: dict[str, Any]) -> None:
    apart = ("source", "output", "max_failed", "dry_run", "seed", "quiet", "as_json")
    source, output, max_failed, dry_run, seed, quiet, as_json = (given[name] for name in apart)
    manifest = Manifest.read(source)
    for name, stage in (("adapter", "finetune"), ("aligner", "align")):
        if given.get(name):
            Run.read(given[name], stage)
    from mertool.devices import seed_everything
    from mertool.extract import estimate, extract

    options = ExtractOptions(modality=modality, **{key: value for key, value in given.items() if key not in apart})
    if (wrong := manifest.describe_unknown_labels()) and not quiet:
        warn(f"note: {source}: {wrong} in the stages that read labels")
    seed_everything(seed)
    if dry_run:
        _report_estimate(estimate(manifest, output, options), quiet, as_json)
        return
    with progress(f"extract {modality}", quiet) as update:
        result = extract(manifest, output, options, on_progress=update)
    if as_json:
        print_json(result.to_json())
    elif not quiet:
        _report(modality, source, result, given)
    # A clip without this modality is no failure; a store without a single clip still helps nobody.
    look = shlex.join(["mertool", "store", "ls", result.store, "--failures"])
    check_failed(result.failed_share, result.features, max_failed, f"{result.store} (`{look}`)")


def _report_estimate(found: Any, quiet: bool, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
    elif not quiet:
        echo(f"{found.clips} clips: {found.cached} cached, {found.todo} to do; nothing was written")
        if found.todo:
            echo(
                f"media to read: about {format_duration(3600 * found.media_hours)}"
                if found.media_hours
                else "media: none"
            )
            echo(f"time: about {format_duration(found.seconds)} and loading, from {found.sample} measured clips")
            echo(f"disk: {found.store} grows by about {format_bytes(found.disk)}")
            if found.faces:
                echo(f"      {found.faces} grows by about {format_bytes(found.faces_disk)}")
            echo(f"      for a moment at the end twice that; {format_bytes(found.disk_free)} are free")
        if found.sample_failed:
            echo(f"{found.sample_failed} of the {found.sample} measured clips failed")
        if 2 * (found.disk + found.faces_disk) > found.disk_free:
            warn("note: that does not fit on the disk")


def _report(modality: str, source: Path, result: Any, given: dict[str, Any]) -> None:
    if not result.worked:
        echo(f"{result.store} is up to date: {result.features} of {result.clips} clips cached, nothing to do")
    else:
        echo(
            f"{result.features} of {result.clips} clips have {modality} features "
            f"({result.extracted} extracted now, {result.cached} cached)"
            + (
                ""
                if modality == "faces"
                else f", {result.layers} layer{'s' * (result.layers != 1)} x {result.channels}"
            )
        )
        echo(_where_time_went(modality, result))
    for what, counts in (("missing", result.missing), ("failed", result.failed)):
        if counts:
            echo(f"{what}: " + ", ".join(f"{count} {reason}" for reason, count in counts.items()))
    if result.out_of_fold is not None:
        echo(
            f"adapters: {result.out_of_fold} training clips got that of the fold which held them out, all others the "
            "final one; what each adds to all clips alike is taken off"
        )
    if result.transcripts:
        echo(f"transcripts: {result.transcripts}")
    if result.truncated:
        echo(f"cut to the encoder's length: {result.truncated} transcripts")
    if result.faces:
        echo(f"face crops: {result.faces}")
    echo(f"store: {result.store}")
    if given["shard"]:
        stem, _, of = result.store.rpartition("-of-")
        parts = f"{shlex.quote(stem.rpartition('.')[0])}.*-of-{shlex.quote(of)}"
        echo(f"when all shards are done: mertool store merge {parts} -o {shlex.quote(str(given['output']))}")
    elif result.features:
        suggest_next(*_following(modality, source, result.store, given))


def _where_time_went(modality: str, result: Any) -> str:
    """One line that shows the bottleneck."""
    spent = result.seconds
    beside = f"decode {spent['decode']:.1f} s, faces {spent['faces']:.1f} s, write {spent['write']:.1f} s"
    rate = f"{result.media_seconds / spent['wall']:.0f} s of media per second" if spent["wall"] else ""
    if modality == "faces":
        return f"time: {spent['wall']:.1f} s ({rate}), summed over the processes: {beside}"
    kinds = {kind: spent[kind] for kind in ("decode", "faces", "write")}
    slowest = "the encoder" if spent["idle"] < spent["encode"] else max(kinds, key=lambda kind: kinds[kind])
    return (
        f"time without loading: {spent['wall']:.1f} s" + (f" ({rate})" if modality != "text" else "") + f": encode "
        f"{spent['encode']:.1f} s, idle {spent['idle']:.1f} s; beside it, summed over the processes: {beside}"
        # Of a short run the start of processes is the most, and says nothing about a long one.
         + (f". Bottleneck: {slowest}" if spent["encode"] and spent["wall"] > SHORT else "")
    )


def _following(modality: str, source: Path, store: str, given: dict[str, Any]) -> list[object]:
    """The command that such a store is for."""
    if source.is_dir() and modality != "faces":
        return ["manifest", source, "-o", "clips.csv", "--labels", "LABELS"]
    if modality == "faces":
        return ["extract", "video", source, "--faces", store, "-o", "features/video.h5"]
    if modality == "video" and given["pool"] == "none":
        return ["align", "--audio", "AUDIO_STORE", "--video", store, "-o", "runs/visual"]
    if modality == "audio" and given["adapter"]:
        return ["align", "--audio", store, "--video", "FRAME_STORE", "-o", "runs/visual"]
    if modality == "audio" and given["pool"] == "mean":
        return ["probe-layers", store, "--manifest", source, "-o", "runs/probe"]
    return ["fuse", store, "OTHER_STORES", "--manifest", source, "-o", "runs/fusion"]

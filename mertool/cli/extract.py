"""`mertool extract audio|video|faces|text`: features of every clip into a store."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.common import (
    ClipTimeout,
    Device,
    Dtype,
    Json,
    MaxFailed,
    Overwrite,
    Quiet,
    Seed,
    Source,
    StoreOutput,
    Workers,
    check_failed,
    follow,
    note,
    print_json,
    progress,
    say,
)
from mertool.manifest import Manifest

app = typer.Typer(help="Features of every clip into an HDF5 store.", no_args_is_help=True)

Encoder = Annotated[str | None, typer.Option(help="Table name (`mertool models`), hub id or local folder.")]
Layers = Annotated[
    str | None,
    typer.Option(help="all, last, 16-21 or 0,6,12. Layer n is the output of transformer block n, 0 the embedding."),
]
Pool = Annotated[str, typer.Option(help="mean: one vector per clip; none: keep frames.")]
Storage = Annotated[str, typer.Option(help="Number format in the store: float16 or float32.")]
Fps = Annotated[float, typer.Option(help="Face frames per second of video.")]


@app.command("audio", epilog="Example: mertool extract audio clips.csv -o features/audio.h5 --encoder hubert-base")
def audio(
    source: Source,
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
    workers: Workers = None,
    clip_timeout: ClipTimeout = 120.0,
    max_failed: MaxFailed = 0.1,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Hidden states of a speech encoder (default: hubert-large-zh)."""
    options = locals()
    _extract("audio", options)


@app.command("video", epilog="Example: mertool extract video clips.csv -o features/video.h5 --encoder clip-vit-b16")
def video(
    source: Source,
    output: StoreOutput,
    encoder: Encoder = None,
    layers: Layers = "last",
    pool: Pool = "mean",
    aligner: Annotated[Path | None, typer.Option(help="An align run: features in the acoustic space.")] = None,
    faces: Annotated[Path | None, typer.Option(help="Store of `extract faces`: no detection is done again.")] = None,
    fps: Fps = 4.0,
    storage: Storage = "float16",
    device: Device = "auto",
    dtype: Dtype = "auto",
    workers: Workers = None,
    clip_timeout: ClipTimeout = 120.0,
    max_failed: MaxFailed = 0.1,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Face track, square crop, image encoder (default: clip-vit-l14)."""
    options = locals()
    _extract("video", options)


@app.command("faces", epilog="Example: mertool extract faces clips.csv -o features/faces.h5")
def faces(
    source: Source,
    output: StoreOutput,
    fps: Fps = 4.0,
    device: Device = "auto",
    workers: Workers = None,
    clip_timeout: ClipTimeout = 120.0,
    max_failed: MaxFailed = 0.1,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Face crops (224 x 224) once, for any number of visual encoders."""
    options = locals()
    _extract("faces", options)


@app.command("text", epilog="Example: mertool extract text clips.csv -o features/text.h5 --encoder bert-base")
def text(
    source: Source,
    output: StoreOutput,
    encoder: Encoder = None,
    layers: Layers = "last",
    pool: Pool = "mean",
    storage: Storage = "float16",
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_failed: MaxFailed = 0.1,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Hidden states of a text encoder or language model on the transcripts (default: roberta-large-zh)."""
    options = locals()
    _extract("text", options)


def _extract(modality: str, given: dict[str, Any]) -> None:
    apart = ("source", "output", "max_failed", "seed", "quiet", "as_json")
    source, output, max_failed, seed, quiet, as_json = (given[name] for name in apart)
    manifest = Manifest.read(source)
    from mertool.devices import seed_everything
    from mertool.extract import ExtractOptions, extract

    options = ExtractOptions(modality, **{key: value for key, value in given.items() if key not in apart})
    if (wrong := manifest.unknown_labels()) and not quiet:
        note(f"note: {source}: {wrong} in the stages that read labels")
    seed_everything(seed)
    with progress(f"extract {modality}", quiet) as update:
        result = extract(manifest, output, options, update)
    if as_json:
        print_json(result.to_json())
    elif not quiet:
        _report(modality, source, result, given)
    # A clip without this modality is no failure; a store without a single clip still helps nobody.
    look = shlex.join(["mertool", "store", "ls", str(output), "--failures"])
    check_failed(result.failed_share, result.features, max_failed, f"{output} (`{look}`)")


def _report(modality: str, source: Path, result: Any, given: dict[str, Any]) -> None:
    if not result.worked:
        say(f"{result.store} is up to date: {result.features} of {result.clips} clips cached, nothing to do")
    else:
        say(
            f"{result.features} of {result.clips} clips have {modality} features "
            f"({result.extracted} extracted now, {result.cached} cached)"
            + ("" if modality == "faces" else f", {result.layers} layers x {result.channels}")
        )
        spent = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in result.seconds.items())
        say(f"time: {spent}; media: {result.media_seconds:.0f} s")
    for what, counts in (("missing", result.missing), ("failed", result.failed)):
        if counts:
            say(f"{what}: " + ", ".join(f"{count} {reason}" for reason, count in counts.items()))
    say(f"store: {result.store}")
    if result.features:
        follow(*_following(modality, source, result.store, given))


def _following(modality: str, source: Path, store: str, given: dict[str, Any]) -> list[object]:
    """The command that such a store is for."""
    if modality == "faces":
        return ["extract", "video", source, "--faces", store, "-o", "features/video.h5"]
    if modality == "video" and given["pool"] == "none":
        return ["align", "--audio", "AUDIO_STORE", "--video", store, "-o", "runs/visual"]
    if modality == "audio" and given["adapter"]:
        return ["align", "--audio", store, "--video", "FRAME_STORE", "-o", "runs/visual"]
    if modality == "audio" and given["pool"] == "mean":
        return ["probe-layers", store, "--manifest", source, "-o", "runs/probe"]
    return ["fuse", store, "OTHER_STORES", "--manifest", source, "-o", "runs/fusion"]

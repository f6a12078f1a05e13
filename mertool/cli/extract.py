"""`mertool extract audio|video|faces|text`: features of every clip into a store."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.arguments import Json, MaxFailed, Quiet, SourceArgument, StoreOutput
from mertool.cli.console import check_failed, echo, format_bytes, format_duration, print_json, suggest_next, warn
from mertool.cli.help import CommandGroup
from mertool.cli.interrupts import keeping, kept_clips
from mertool.cli.options import add_command
from mertool.cli.progress import progress
from mertool.cli.source import read_source
from mertool.errors import count_of
from mertool.files import check_writable
from mertool.options.extract import ExtractOptions
from mertool.runs import Run

# Of a shorter extraction the start of processes takes most of the time, so a bottleneck would mislead.
MIN_SECONDS_FOR_BOTTLENECK = 5.0
app = typer.Typer(cls=CommandGroup, help="Features of every clip into an HDF5 store.", no_args_is_help=True)


def extract(
    *,
    source: SourceArgument,
    output: StoreOutput,
    options: ExtractOptions,
    max_failed: MaxFailed = 0.1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a few clips and estimate clips, time and disk space.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Extract features of one modality, or estimate how long that takes."""
    manifest = read_source(source)
    check_writable(output)
    if options.adapter:
        Run.read(options.adapter, "finetune")
    if options.aligner:
        Run.read(options.aligner, "align")
    from mertool.extract import estimate
    from mertool.extract import extract as run_stage

    if (unknown := manifest.describe_unknown_labels()) and not quiet:
        warn(f"note: {source}: {unknown} in the stages that read labels, unless --classes names others there")
    if dry_run:
        estimated = estimate(manifest, output, options)
        if as_json:
            print_json(estimated.to_json())
        elif not quiet:
            print_estimate(estimated)
        return
    stores = [output, *([options.frames] if options.frames else [])]
    with keeping(lambda: kept_clips(stores)), progress(f"extract {options.modality}", quiet) as update:
        result = run_stage(manifest, output, options, on_progress=update)
    if as_json:
        print_json(result.to_json())
    elif not quiet:
        print_result(result, source=source, output=output, options=options)
    # A clip without this modality is no failure; a store without a single clip still is.
    failures = shlex.join(["mertool", "store", "ls", result.store, "--failures"])
    reasons = f"{result.store} (`{failures}`)"
    check_failed(result.failed_share, result.features, max_failed=max_failed, reasons=reasons)


for modality, text in {
    "audio": "Extract hidden states of a speech encoder.",
    "video": "Track the face, crop it, and extract hidden states of an image encoder.",
    "faces": "Extract face crops (224 x 224) once, for any number of visual encoders.",
    "text": "Extract hidden states of a text encoder or language model on the transcripts.",
}.items():
    encoder = {"audio": " --encoder hubert-base", "video": " --encoder clip-vit-b16", "text": " --encoder bert-base"}
    example = f"Example: mertool extract {modality} clips.csv -o features/{modality}.h5{encoder.get(modality, '')}"
    add_command(app, modality, extract, example=example, help=text, fixed={"modality": modality})


def print_estimate(estimate: Any) -> None:
    """Print the clips, the time and the disk space of an extraction that was not done."""
    echo(f"{count_of(estimate.clips, 'clip')}: {estimate.cached} cached, {estimate.todo} to do; nothing was written")
    if estimate.todo:
        hours = estimate.media_hours
        echo(f"media to read: about {format_duration(3600 * hours)}" if hours else "media: none")
        sample = count_of(estimate.sample, "measured clip")
        echo(f"time: about {format_duration(estimate.seconds)} and loading, from {sample}")
        echo(f"disk: {estimate.store} grows by about {format_bytes(estimate.disk)}")
        if estimate.faces:
            echo(f"      {estimate.faces} grows by about {format_bytes(estimate.faces_disk)}")
        echo(f"      for a moment at the end twice that; {format_bytes(estimate.disk_free)} are free")
    if estimate.sample_failed:
        echo(f"{estimate.sample_failed} of the {count_of(estimate.sample, 'measured clip')} failed")
    if 2 * (estimate.disk + estimate.faces_disk) > estimate.disk_free:
        warn("note: that does not fit on the disk")


def print_result(result: Any, *, source: Path, output: Path, options: ExtractOptions) -> None:
    """Print what was extracted, where the time went, the files, and the next command."""
    if result.worked:
        echo(_format_counts(result, options.modality))
        echo(_format_times(result, options.modality))
    else:
        echo(
            f"{result.store} is up to date: {result.features} of {count_of(result.clips, 'clip')} cached, nothing to do"
        )
    for name, counts in (("missing", result.missing), ("failed", result.failed)):
        if counts:
            echo(f"{name}: " + ", ".join(f"{count} {reason}" for reason, count in counts.items()))
    if result.out_of_fold is not None:
        clips = count_of(result.out_of_fold, "training clip")
        echo(
            f"adapters: {clips} got that of the fold which held them out, all others the final one; the mean offset of "
            "each adapter is subtracted"
        )
    if result.transcripts:
        echo(f"transcripts: {result.transcripts}")
    if result.noted:
        listing = shlex.join(["mertool", "store", "ls", result.store, "--media"])
        echo(f"read with losses: {count_of(result.noted, 'clip')} (`{listing}`)")
    if result.truncated:
        echo(f"cut to the encoder's length: {count_of(result.truncated, 'transcript')}")
    if result.faces:
        echo(f"face crops: {result.faces}")
    if result.frames:
        echo(f"frames: {result.frames}")
    echo(f"store: {result.store}")
    if options.shard:
        echo(_format_merge(result.store, output))
        if options.frames:
            echo(_format_merge(result.frames, options.frames))
    elif result.features:
        suggest_next(_next_command(result.store, source, options))


def _format_counts(result: Any, modality: str) -> str:
    """`3 of 4 clips have audio features (3 extracted now, 0 cached), 13 layers x 768`."""
    counts = f"{result.features} of {result.clips} clips have {modality} features"
    shape = "" if modality == "faces" else f", {count_of(result.layers, 'layer')} x {result.channels}"
    return f"{counts} ({result.extracted} extracted now, {result.cached} cached){shape}"


def _format_times(result: Any, modality: str) -> str:
    """One line that shows the bottleneck."""
    seconds = result.seconds
    in_processes = (
        f"summed over the processes: decode {seconds['decode']:.1f} s, faces {seconds['faces']:.1f} s, "
        f"write {seconds['write']:.1f} s"
    )
    rate = f" ({result.media_seconds / seconds['wall']:.0f} s of media per second)" if seconds["wall"] else ""
    if modality == "faces":
        return f"time: {seconds['wall']:.1f} s{rate}, {in_processes}"
    text = f"time without loading: {seconds['wall']:.1f} s{rate if modality != 'text' else ''}"
    text += f": encode {seconds['encode']:.1f} s, idle {seconds['idle']:.1f} s; beside it, {in_processes}"
    if seconds["encode"] and seconds["wall"] > MIN_SECONDS_FOR_BOTTLENECK:
        slowest = max(("decode", "faces", "write"), key=lambda kind: seconds[kind])
        text += f". Bottleneck: {'the encoder' if seconds['idle'] < seconds['encode'] else slowest}"
    return text


def _format_merge(store: str, output: Path) -> str:
    """The command that joins the stores of all shards."""
    stem, _, count = store.rpartition("-of-")
    shards = f"{shlex.quote(stem.rpartition('.')[0])}.*-of-{shlex.quote(count)}"
    return f"when all shards are done: mertool store merge {shards} -o {shlex.quote(str(output))}"


def _next_command(store: str, source: Path, options: ExtractOptions) -> list[object]:
    """The command that reads such a store."""
    modality = options.modality
    if modality == "faces":
        return ["extract", "video", source, "--faces", store, "-o", "features/video.h5"]
    if source.is_dir():
        return ["manifest", source, "-o", "clips.csv", "--labels", "LABELS"]
    if modality == "video" and (options.frames or options.pool == "none") and not options.aligner:
        return ["align", "--audio", "AUDIO_STORE", "--video", options.frames or store, "-o", "runs/visual"]
    if modality == "audio" and options.adapter:
        return ["align", "--audio", store, "--video", "FRAME_STORE", "-o", "runs/visual"]
    if modality == "audio" and options.pool != "none":
        return ["probe-layers", store, "--manifest", source, "-o", "runs/probe"]
    return ["fuse", store, "OTHER_STORES", "--manifest", source, "-o", "runs/fusion"]

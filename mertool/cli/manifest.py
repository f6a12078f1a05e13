"""`mertool manifest`: the list of clips, with their labels, transcripts and speakers."""

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.arguments import Json, Quiet
from mertool.cli.console import echo, print_json, suggest_next, table, warn
from mertool.errors import MertoolError
from mertool.files import check_writable
from mertool.manifest import Manifest, with_annotations
from mertool.options.manifest import ManifestOptions

EXAMPLE = "Example: mertool manifest my-clips -o clips.csv --labels labels.csv --transcripts words.csv"


def manifest(
    *,
    folder: Annotated[Path, typer.Argument(help="Folder searched recursively for video and audio files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Manifest CSV to write.")],
    options: ManifestOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Build a manifest (CSV) of all clips in a folder, with labels, transcripts and speakers.

    Labelled clips get split train, the others unlabelled. Every fault is reported at once.
    """
    check_writable(output, options.labels, options.transcripts)
    if folder.is_file():
        raise MertoolError(f"{folder} is a file: give the folder of the clips")
    clips = Manifest.read(folder)
    annotated, labels_elsewhere = annotate(clips, folder, options)
    annotated.write(output)
    summary = summarize(annotated, output, labels_elsewhere)
    if as_json:
        print_json(summary)
    elif not quiet:
        print_summary(summary)


def annotate(clips: Manifest, folder: Path, options: ManifestOptions) -> tuple[Manifest, int]:
    """Return the clips with what the files of the options say of them, and the number of labels of other clips."""
    from mertool.interop.mertools import read_labels, read_transcripts

    clip_ids = {clip.clip for clip in clips.clips}
    label_of, split_of = read_labels(options.labels) if options.labels else (None, {})
    text_of = read_transcripts(options.transcripts) if options.transcripts else {}
    if options.labels:
        _check_common_clips(options.labels, "labels", label_of or {}, clip_ids=clip_ids, folder=folder)
    if options.transcripts:
        _check_common_clips(options.transcripts, "transcripts", text_of, clip_ids=clip_ids, folder=folder)
    speaker_of = match_speakers(clips, options.speakers) if options.speakers is not None else {}
    annotated = with_annotations(clips, labels=label_of, texts=text_of, speakers=speaker_of, splits=split_of)
    if unknown := annotated.describe_unknown_labels(options.classes):
        raise MertoolError(f"{options.labels}: {unknown}")
    return annotated, len(set(label_of or {}) - clip_ids)


def _check_common_clips(path: Path, kind: str, named: Collection[str], *, clip_ids: set[str], folder: Path) -> None:
    if not clip_ids & set(named):
        raise MertoolError(
            f"{path} names {len(named)} clips with {kind}, none of which is in {folder} "
            f"(there: {min(clip_ids)}, ...; {kind}: {min(named or {'-'})}, ...)"
        )


def match_speakers(clips: Manifest, pattern: str) -> dict[str, str]:
    """Return the speaker of each clip whose id the pattern matches: the first group of the match."""
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise MertoolError(f"--speakers '{pattern}' is not a regular expression: {error}") from error
    if regex.groups < 1:
        raise MertoolError(f"--speakers '{pattern}' has no group: put ( ) around the speaker's part")
    matches = {clip.clip: regex.search(clip.clip) for clip in clips.clips}
    if not any(matches.values()):
        raise MertoolError(f"--speakers '{pattern}' matches no clip id (first: {clips.clips[0].clip})")
    return {clip: match.group(1) for clip, match in matches.items() if match and match.group(1)}


def summarize(clips: Manifest, output: Path, labels_elsewhere: int) -> dict[str, Any]:
    """Return the result of the command: where the manifest is, and counts of its clips."""
    return {
        "manifest": str(output),
        "clips": len(clips),
        "labels": Counter(clip.label or "(no label)" for clip in clips.clips),
        "with_text": sum(bool(clip.text) for clip in clips.clips),
        "speakers": len(set(clips.speakers().values())),
        "labels_for_other_clips": labels_elsewhere,
    }


def print_summary(summary: dict[str, Any]) -> None:
    """Print the counts as a table, and the next command."""
    rows = [[label, count] for label, count in sorted(summary["labels"].items())]
    table(f"{summary['clips']} clips", ["label", "clips"], rows)
    echo(f"{summary['with_text']} with a transcript, {summary['speakers']} speakers")
    if summary["labels_for_other_clips"]:
        warn(f"note: {summary['labels_for_other_clips']} labels are of clips that are not in the folder")
    echo(f"manifest: {summary['manifest']}")
    suggest_next(["extract", "audio", summary["manifest"], "-o", "features/audio.h5"])

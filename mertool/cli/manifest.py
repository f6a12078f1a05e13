"""`mertool manifest`: which clips there are."""

import re
from pathlib import Path
from typing import Annotated

import typer

from mertool.cli.console import MER_CLASSES, Classes, Json, Quiet, echo, print_json, suggest_next, table, warn
from mertool.errors import MertoolError
from mertool.files import check_writable
from mertool.manifest import Manifest, parse_classes, with_annotations

EXAMPLE = "Example: mertool manifest my-clips -o clips.csv --labels labels.csv --transcripts words.csv"


def manifest(
    folder: Annotated[Path, typer.Argument(help="Folder searched recursively for video and audio files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Manifest CSV to write.")],
    labels: Annotated[
        Path | None, typer.Option(help="Labels: CSV (name,discrete or clip,label) or MERTools' label-6way.npz.")
    ] = None,
    transcripts: Annotated[Path | None, typer.Option(help="Transcripts: CSV (name,chinese or clip,text).")] = None,
    speakers: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Speaker from the clip id: the first group, e.g. '^(spk\\d+)_'.")
    ] = None,
    classes: Classes = MER_CLASSES,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Build a manifest (CSV) of all clips in a folder, with labels, transcripts and speakers.

    Labelled clips get split train, the others unlabelled. Every fault is reported at once.
    """
    from mertool.interop.mertools import read_labels, read_transcripts

    check_writable(output, labels, transcripts)
    if folder.is_file():
        raise MertoolError(f"{folder} is a file: give the folder of the clips")
    found = Manifest.read(folder)
    known = {clip.clip for clip in found.clips}
    label_of, split_of = read_labels(labels) if labels else (None, {})
    text_of = read_transcripts(transcripts) if transcripts else {}
    for what, path, names in (("labels", labels, label_of), ("transcripts", transcripts, text_of)):
        if path and not known & set(names or {}):
            raise MertoolError(
                f"{path} names {len(names or {})} clips with {what}, none of which is in {folder} "
                f"(there: {min(known)}, ...; {what}: {min(names or {'-'})}, ...)"
            )
    made = with_annotations(found, labels=label_of, texts=text_of, speakers=_speakers(found, speakers), splits=split_of)
    if wrong := made.describe_unknown_labels(parse_classes(classes)):
        raise MertoolError(f"{labels}: {wrong}")
    made.write(output)
    _report(made, output, len(set(label_of or {}) - known), quiet, as_json)


def _speakers(found: Manifest, pattern: str | None) -> dict[str, str]:
    if pattern is None:
        return {}
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise MertoolError(f"--speakers '{pattern}' is not a regular expression: {error}") from error
    if regex.groups < 1:
        raise MertoolError(f"--speakers '{pattern}' has no group: put ( ) around the speaker's part")
    matches = {clip.clip: regex.search(clip.clip) for clip in found.clips}
    if not any(matches.values()):
        raise MertoolError(f"--speakers '{pattern}' matches no clip id (first: {found.clips[0].clip})")
    return {clip: match.group(1) for clip, match in matches.items() if match and match.group(1)}


def _report(made: Manifest, output: Path, elsewhere: int, quiet: bool, as_json: bool) -> None:
    counts: dict[str, int] = {}
    for clip in made.clips:
        key = clip.label or "(no label)"
        counts[key] = counts.get(key, 0) + 1
    summary = {
        "manifest": str(output),
        "clips": len(made),
        "labels": counts,
        "with_text": sum(bool(clip.text) for clip in made.clips),
        "speakers": len(set(made.speakers().values())),
        "labels_for_other_clips": elsewhere,
    }
    if as_json:
        print_json(summary)
    elif not quiet:
        table(f"{len(made)} clips", ["label", "clips"], [[name, count] for name, count in sorted(counts.items())])
        echo(f"{summary['with_text']} with a transcript, {summary['speakers']} speakers")
        if elsewhere:
            warn(f"note: {elsewhere} labels are of clips that are not in the folder")
        echo(f"manifest: {output}")
        suggest_next("extract", "audio", output, "-o", "features/audio.h5")

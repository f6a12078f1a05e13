"""`mertool manifest`: the list of clips, with their labels, transcripts and speakers."""

import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mertool.cli.arguments import Json, Quiet
from mertool.cli.console import echo, print_json, suggest_next
from mertool.cli.source import tell_notes
from mertool.cli.tables import table
from mertool.errors import MertoolError, count_of
from mertool.files import check_writable
from mertool.manifest import (
    AUDIO_SUFFIXES,
    EMOTIONS,
    VIDEO_SUFFIXES,
    Manifest,
    canonical_label,
    describe_unknown_labels,
)
from mertool.options.manifest import ManifestOptions

if TYPE_CHECKING:
    from mertool.corpora import Corpus

EXAMPLE = "Example: mertool manifest my-clips -o clips.csv --labels labels.csv --transcripts words.csv"


def manifest(
    *,
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder searched recursively for video and audio files, or a label file for features only."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Manifest CSV to write.")],
    options: ManifestOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Build a manifest (CSV) of all clips in a folder, with labels, transcripts and speakers.

    Labelled clips get split train, the others unlabelled. With --corpus the layout of the corpus says all of it, and
    its standard folds are written beside the manifest. Every fault is reported at once.
    """
    folds_file = output.with_suffix(".folds.csv")
    check_writable(output, options.labels, options.transcripts)
    if folder.is_file() and options.corpus:
        raise MertoolError(f"{folder} is a file: --corpus reads the folder of an unpacked corpus")
    corpus = read_named_corpus(folder, options)
    if folder.is_file():
        clips = read_clips(folder, options)
    else:
        clips = corpus.manifest if corpus else Manifest.read(folder).named_in_utf8()
    tell_notes(clips.notes)
    check_writable(output, *(path for clip in clips.clips for path in clip.files))
    annotated = annotate_clips(clips, options)
    annotated.write(output)
    summary = summarize(annotated, output)
    if corpus:
        summary |= write_folds(corpus, folds_file)
    if as_json:
        print_json(summary)
    elif not quiet:
        print_summary(summary)


def read_named_corpus(folder: Path, options: ManifestOptions) -> "Corpus | None":
    """Return the corpus that the options name, read from its folder."""
    from mertool.corpora import read_corpus

    if options.corpus is None:
        return None
    return read_corpus(
        options.corpus, folder, classes=options.classes, map_labels=options.map_labels, partial=options.partial
    )


def write_folds(corpus: "Corpus", path: Path) -> dict[str, Any]:
    """Write the folds of a corpus that has some; return what the summary says of the corpus."""
    from mertool.corpora import write_corpus_folds

    summary = {"corpus": corpus.card.name, "classes": corpus.classes, "protocol": corpus.card.protocol, "folds": None}
    if corpus.folds:
        check_writable(path)
        write_corpus_folds(corpus, path)
        summary["folds"] = str(path)
    return summary


def read_clips(path: Path, options: ManifestOptions) -> Manifest:
    """Return the clips that a file of labels names, for features without media."""
    from mertool.interop.annotations import fill_splits
    from mertool.interop.labels import read_clips as read_label_file

    if path.suffix.lower() in AUDIO_SUFFIXES | VIDEO_SUFFIXES:
        raise MertoolError(f"{path} is a media file: give the folder it lies in")
    if options.labels:
        raise MertoolError(f"{path} is a file of labels: leave out --labels, or give the folder of the clips")
    return fill_splits(name_classes(read_label_file(path), options, path))


def annotate_clips(clips: Manifest, options: ManifestOptions) -> Manifest:
    """Return the clips with what the files of the options say of them; print notes on the files.

    Labels become the names of their classes. Raises MertoolError for a label that is of no class.
    """
    from mertool.interop.annotations import annotate, fill_splits, with_speakers
    from mertool.interop.labels import read_labels, read_transcripts

    for path, kind in ((options.labels, "labels"), (options.transcripts, "transcripts")):
        if path is None:
            continue
        annotations = read_labels(path) if kind == "labels" else read_transcripts(path, options.language)
        tell_notes(annotations.notes)
        joined = annotate(clips, annotations)
        tell_notes(describe_unmatched(joined.unmatched, kind, path))
        clips = joined.manifest
    if options.speakers is not None:
        clips = with_speakers(clips, match_speakers(clips, options.speakers))
    return fill_splits(name_classes(clips, options)) if options.labels else clips


def name_classes(clips: Manifest, options: ManifestOptions, source: Path | None = None) -> Manifest:
    """Return the clips with the class names that their labels mean."""
    classes, allow_index = options.classes or EMOTIONS, options.classes is not None
    labels = [clip.label for clip in clips.clips if clip.label]
    if unknown := describe_unknown_labels(labels, classes, allow_index=allow_index):
        raise MertoolError(f"{source or options.labels}: {unknown}; name another set with --classes a,b,c")
    class_of = {label: canonical_label(label, classes, allow_index=allow_index) for label in labels}
    named = (replace(clip, label=class_of.get(clip.label or "")) for clip in clips.clips)
    return replace(clips, clips=tuple(named))


def describe_unmatched(names: list[str], kind: str, path: Path) -> list[str]:
    """Return a note on rows of other clips, empty if there are none."""
    if not names:
        return []
    count = "1 row is of a clip" if len(names) == 1 else f"{len(names)} rows are of clips"
    return [f"{kind} {path}: {count} not in the folder (first: {names[0]})"]


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


def summarize(clips: Manifest, output: Path) -> dict[str, Any]:
    """Return the result of the command: where the manifest is, and counts of its clips."""
    return {
        "manifest": str(output),
        "clips": len(clips),
        "labels": Counter(clip.label or "(no label)" for clip in clips.clips),
        "numbers": Counter(name for clip in clips.clips for name in clip.numbers),
        "with_text": sum(bool(clip.text) for clip in clips.clips),
        "speakers": len(set(clips.speakers().values())),
        "splits": Counter(clip.split or "(no split)" for clip in clips.clips),
    }


def print_summary(summary: dict[str, Any]) -> None:
    """Print the counts as a table, and the next command."""
    rows = [[label, count] for label, count in sorted(summary["labels"].items())]
    table(count_of(summary["clips"], "clip"), ["label", "clips"], rows)
    for name, count in summary["numbers"].items():
        echo(f"{count} with a number for {name}")
    echo(f"{summary['with_text']} with a transcript, {count_of(summary['speakers'], 'speaker')}")
    echo(f"manifest: {summary['manifest']}")
    if "corpus" in summary:
        splits = ", ".join(f"{split} {count}" for split, count in summary["splits"].items())
        echo(f"protocol: {summary['protocol']}" + ("" if summary["folds"] else f" ({splits})"))
    suggest_next(["extract", "audio", summary["manifest"], "-o", "features/audio.h5"])
    if "corpus" in summary:
        classes = [] if summary["classes"] == EMOTIONS else ["--classes", ",".join(summary["classes"])]
        folds = ["--folds", summary["folds"]] if summary["folds"] else []
        probe = ["probe-layers", "features/audio.h5", "-m", summary["manifest"], "-o", "runs/probe"]
        echo("then: " + shlex.join(["mertool", *probe, *classes, *folds]))

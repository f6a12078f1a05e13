"""Reading labels and transcripts in any form that mertool knows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mertool.errors import MertoolError, combine_errors
from mertool.interop.annotations import Annotations, annotate
from mertool.interop.columns import read_transcript_table
from mertool.interop.formats import csv_table, find_format, titles_with
from mertool.manifest import COLUMNS, NUMBERS, Clip, Manifest, clip_id, clip_id_faults
from mertool.tables import read_table


def read_labels(path: Path) -> Annotations:
    """Read labels, and what else the file says of its clips, in any form of `interop.formats`.

    Raises MertoolError for a file that does not exist or cannot be read.
    """
    if not path.exists():
        raise MertoolError(f"labels file {path} does not exist: give {titles_with('read_labels')}")
    if not path.is_dir() and not path.is_file():  # opening a pipe would wait for a writer that never comes
        raise MertoolError(f"labels file {path} is not a regular file: give {titles_with('read_labels')}")
    label_format = find_format(path)
    if label_format is None:
        raise MertoolError(f"{path} holds no labels: give {titles_with('read_labels')}")
    annotations: Annotations = label_format.read_labels(path)
    return annotations


def is_manifest(path: Path) -> bool:
    """Return whether a file has the columns of a manifest and no others; a label table often has some of them."""
    if not path.is_file() or find_format(path) is not csv_table:
        return False
    return {"clip", "path"} <= set(read_table(path, "labels").columns) <= set(COLUMNS)


def read_clips(path: Path) -> Manifest:
    """Return the clips that a file of labels names, as clips without media: only their features or texts are used.

    Raises MertoolError for all names that are no clip ids, or that are given to several clips.
    """
    annotations = read_labels(path)
    names = [row.clip or clip_id(row.name) for row in annotations.rows]
    faults = [fault for name in dict.fromkeys(names) for fault in clip_id_faults(name)]
    if faults:
        raise combine_errors(str(path), faults)
    if not names:
        raise MertoolError(f"{path} names no clip: give {titles_with('read_labels')}")
    note = f"{path} names no media: clips have only the features that `mertool store import` reads, and texts"
    clips = Manifest(tuple(Clip(clip=name) for name in dict.fromkeys(names)), path, (*annotations.notes, note))
    rows = tuple(replace(row, name=name, clip=None) for row, name in zip(annotations.rows, names, strict=True))
    return replace(annotate(clips, replace(annotations, rows=rows)).manifest, notes=clips.notes)


def label_clips(clips: Sequence[Clip], path: Path) -> Manifest:
    """Return clips with their labels in a file of any form, followed by the labelled clips of the file that are others.

    Raises MertoolError if the file has a label of none of the clips.
    """
    annotations = read_labels(path)
    joined = annotate(Manifest(tuple(clips), path), annotations)
    labels = annotations.labelled()
    others = tuple(
        Clip(clip=name, label=labels[name].label, **{number: getattr(labels[name], number) for number in NUMBERS})
        for name in dict.fromkeys(joined.unmatched)
        if name in labels
    )
    return Manifest((*joined.manifest.clips, *others), path, annotations.notes)


def read_transcripts(path: Path, language: str | None = None) -> Annotations:
    """Read the transcripts of a CSV; `language` names the column of MERTools' tables (chinese, english)."""
    return read_transcript_table(path, language)

"""Reading labels and transcripts in any form that mertool knows."""

from collections.abc import Sequence
from pathlib import Path

from mertool.errors import MertoolError
from mertool.interop.annotations import Annotations, annotate
from mertool.interop.columns import read_label_table, read_transcript_table
from mertool.interop.emobox import SUFFIXES, read_emobox
from mertool.interop.mertools import read_npz
from mertool.manifest import COLUMNS, NUMBERS, Clip, Manifest
from mertool.tables import read_table

FORMS = "a CSV (name,label or clip,label), label-6way.npz of MERTools, or a .jsonl or fold folder of EmoBox"


def read_labels(path: Path) -> Annotations:
    """Read labels, and what else the file says of its clips: CSV, the npz of MERTools, the jsonl or folder of EmoBox.

    Raises MertoolError for a file that does not exist or cannot be read.
    """
    if not path.exists():
        raise MertoolError(f"labels file {path} does not exist: give {FORMS}")
    if not path.is_dir() and not path.is_file():  # opening a pipe would wait for a writer that never comes
        raise MertoolError(f"labels file {path} is not a regular file: give {FORMS}")
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        return read_emobox(path)
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    return read_label_table(path)


def is_manifest(path: Path) -> bool:
    """Return whether a file has the columns of a manifest and no others; a label table often has some of them."""
    if not path.is_file() or path.suffix.lower() in (*SUFFIXES, ".npz"):
        return False
    return {"clip", "path"} <= set(read_table(path, "labels").columns) <= set(COLUMNS)


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

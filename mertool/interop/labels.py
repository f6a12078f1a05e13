"""Reading labels and transcripts in any form that mertool knows."""

from pathlib import Path

from mertool.errors import MertoolError
from mertool.interop.annotations import Annotations
from mertool.interop.columns import read_label_table, read_transcript_table
from mertool.interop.emobox import SUFFIXES, read_emobox
from mertool.interop.mertools import read_npz

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


def read_transcripts(path: Path, language: str | None = None) -> Annotations:
    """Read the transcripts of a CSV; `language` names the column of MERTools' tables (chinese, english)."""
    return read_transcript_table(path, language)

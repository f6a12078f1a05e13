"""CSV tables with a row per clip, as MERTools, nkululeko and people write them; `interop.columns` has their columns."""

from pathlib import Path

from mertool.interop.annotations import Annotations
from mertool.interop.columns import read_label_table

TITLE = "a CSV (name,label or clip,label)"
PRIORITY = -1


def recognises(path: Path) -> bool:
    """Return whether a path is no folder: any other file may be a table."""
    return not path.is_dir()


def read_labels(path: Path) -> Annotations:
    """Return what the table says of its clips."""
    return read_label_table(path)

"""Parquet tables, which need the optional library pyarrow."""

import importlib
from pathlib import Path
from typing import Any

from mertool.errors import MertoolError
from mertool.tables import MAX_COLUMNS, Table


def read_parquet(path: Path) -> Table:
    """Return a Parquet table as a table of texts; columns of other kinds than numbers and texts are left out.

    Raises MertoolError without pyarrow, and for a file that it cannot read.
    """
    parquet = _pyarrow(path)
    if not path.is_file():
        raise MertoolError(f"{path} is not a regular file: give a Parquet table")
    try:
        content = parquet.read_table(path)
        nested = [
            name for name, kind in zip(content.column_names, content.schema.types, strict=True) if kind.num_fields
        ]
        columns = {name: content.column(name).to_pylist() for name in content.column_names if name not in nested}
    except Exception as error:  # pyarrow raises its own kinds, and those of Python
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MertoolError(f"{path} cannot be read as Parquet ({reason})") from error
    if len(columns) > MAX_COLUMNS:
        raise MertoolError(f"{path} has {len(columns):,} columns, at most {MAX_COLUMNS:,} are read")
    notes = (f"columns of {path} that hold lists or media are not read: {', '.join(nested)}",) if nested else ()
    rows = [
        {name.lower(): _cell(value) for name, value in zip(columns, values, strict=True)}
        for values in zip(*columns.values(), strict=True)
    ]
    names = tuple(name.lower() for name in columns)
    return Table(path=path, columns=names, rows=rows, row_numbers=list(range(1, len(rows) + 1)), uneven={}, notes=notes)


def write_parquet(path: Path, columns: dict[str, list[str]]) -> None:
    """Write columns of texts as a Parquet table. Raises MertoolError without pyarrow."""
    parquet, pyarrow = _pyarrow(path), importlib.import_module("pyarrow")
    texts = {name: pyarrow.array(values, pyarrow.string()) for name, values in columns.items()}
    parquet.write_table(pyarrow.table(texts), path)


def _pyarrow(path: Path) -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MertoolError(
            f"{path} is Parquet, which needs pyarrow: pip install 'mertool[parquet]', or give CSV"
        ) from error


def _cell(value: object) -> str:
    """Return a cell as CSV would have it; times of pandas as seconds."""
    if value is None or value != value:
        return ""
    seconds = getattr(value, "total_seconds", None)
    return f"{seconds():.9g}" if seconds else str(value)

"""Folders of Hugging Face `datasets` (AudioFolder, VideoFolder): media, and `metadata.csv`, `.jsonl` or `.parquet`.

The column `file_name` (or `audio_file_name`, ...) names a file relative to the folder of the table. Splits are folders
named `train`, `validation` or `test`, or words of that kind. Source: `folder_based_builder.py` and `data_files.py` of
https://github.com/huggingface/datasets.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from mertool.errors import MertoolError
from mertool.interop.annotations import Annotation, Annotations
from mertool.interop.columns import read_annotations
from mertool.interop.parquet import read_parquet
from mertool.tables import Table, read_table, read_text
from mertool.untrusted import parse_json

TITLE = "a folder of Hugging Face datasets with metadata.csv"
PRIORITY = 1
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
SPLIT_WORDS = {
    "train": ("train", "training"),
    "dev": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
    "unlabelled": ("unlabelled", "unlabeled"),
}


def recognises(path: Path) -> bool:
    """Return whether a path is that of a metadata table, or of a folder that holds some."""
    return path.name in METADATA_NAMES or (path.is_dir() and next(_metadata_files(path), None) is not None)


def read_labels(path: Path) -> Annotations:
    """Return what the metadata tables of a folder, or a single one, say of the files. Raises MertoolError."""
    root, files = (path, list(_metadata_files(path))) if path.is_dir() else (path.parent, [path])
    if len({file.suffix for file in files}) > 1:
        names = ", ".join(file.relative_to(root).as_posix() for file in files)
        raise MertoolError(f"{path} has metadata of several kinds ({names}), which datasets refuses: keep one kind")
    rows: list[Annotation] = []
    notes: list[str] = []
    for file in files:
        annotations = read_annotations(_with_file_column(_read_metadata(file)))
        folder = file.parent.relative_to(root)
        rows += [_placed(row, folder) for row in annotations.rows]
        notes += annotations.notes
    return Annotations(path=path, rows=tuple(rows), notes=tuple(notes))


def split_of_folders(folders: PurePosixPath) -> str | None:
    """Return the split that the names of folders say; None if they say none.

    >>> split_of_folders(PurePosixPath("data/train-clean")), split_of_folders(PurePosixPath("restraint"))
    ('train', None)
    """
    words = re.split(r"[-._ 0-9/]+", folders.as_posix().lower())
    return next((split for split, names in SPLIT_WORDS.items() if set(names) & set(words)), None)


def _metadata_files(folder: Path) -> Iterator[Path]:
    """Yield the metadata tables of a folder and of the folders in it, down to two levels."""
    for pattern in ("", "*/", "*/*/"):
        for name in METADATA_NAMES:
            yield from sorted(folder.glob(pattern + name))


def _read_metadata(file: Path) -> Table:
    if file.suffix == ".parquet":
        return read_parquet(file)
    return _read_jsonl(file) if file.suffix == ".jsonl" else read_table(file, "metadata")


def _read_jsonl(file: Path) -> Table:
    """Return the objects of a file, one per line, as a table of texts."""
    text, notes = read_text(file, "metadata")
    rows, numbers = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise MertoolError(f"{file}, line {number} is not JSON ({error}): give one object per line") from error
        if not isinstance(entry, dict):
            raise MertoolError(f"{file}, line {number} is not a JSON object: give one object per line")
        rows.append({str(name).lower(): _cell(value) for name, value in entry.items()})
        numbers.append(number)
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    rows = [{name: row.get(name, "") for name in columns} for row in rows]
    return Table(path=file, columns=columns, rows=rows, row_numbers=numbers, uneven={}, notes=notes)


def _cell(value: Any) -> str:
    return "" if value is None or isinstance(value, dict | list) else str(value)


def _with_file_column(table: Table) -> Table:
    """Return the table with the column of files under its plain name, and without names that would hide it."""
    named = [name for name in table.columns if name == FILE_NAME or name.endswith(f"_{FILE_NAME}")]
    if not named:
        raise MertoolError(
            f"{table.path} has no column {FILE_NAME}, which datasets needs: it has "
            f"{', '.join(table.columns) or 'none'}; add the files' paths relative to {table.path.parent}"
        )
    column = FILE_NAME if FILE_NAME in named else named[0]
    # A clip's own name stands beside the file, which then is the path.
    names = {column: "path", **{name: f"{name} (not read)" for name in ("path", "name", "id") if name != column}}
    rename = {name: names.get(name, name) for name in table.columns}
    rows = [{rename[name]: cell for name, cell in row.items()} for row in table.rows]
    return replace(table, columns=tuple(rename.values()), rows=rows)


def _placed(row: Annotation, folder: Path) -> Annotation:
    """Return the row with its file named from the root of the data set, and with the split that its folders say."""
    name = PurePosixPath(folder.as_posix(), row.name.replace("\\", "/"))
    return replace(row, name=name.as_posix(), split=row.split or split_of_folders(name.parent))

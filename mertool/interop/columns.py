"""Tables with one row per clip, whose columns have different names in different toolkits (MERTools, nkululeko, ...)."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from mertool.errors import MertoolError, combine_errors, suggest
from mertool.interop.annotations import Annotation, Annotations
from mertool.manifest import NUMBERS, SPLITS, clip_id, parse_number, time_faults
from mertool.tables import Table, normalize, read_table

# By the field of an annotation: names of its column, the first that a table has is read.
COLUMN_NAMES = {
    "name": ("clip", "name", "file", "filename", "file_name", "wav", "key", "id", "utterance_id", "文件名", "文件"),
    "path": ("path", "file_path", "filepath", "wav_path", "audio_path", "video_path"),
    "label": ("label", "discrete", "emotion", "emo", "标签", "情感", "情绪"),
    "text": ("text", "transcript", "transcription", "chinese", "english", "sentence", "utterance", "subtitle", "文本"),
    "speaker": ("speaker", "speaker_id", "spk", "说话人"),
    "gender": ("gender", "sex", "性别"),
    "split": ("split",),
    "start": ("start", "start_time"),
    "end": ("end", "end_time"),
    "valence": ("valence", "val"),
    "arousal": ("arousal", "activation"),
    "sentiment": ("sentiment",),
}
LANGUAGES = ("chinese", "english")
EMPTY = "nan"  # what pandas may write for a missing transcript or number, in any case of letters
SPLIT_ALIASES = {
    "training": "train",
    "development": "dev",
    "devel": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test1": "test",
    "test2": "test",
    "test3": "test",
    "unlabeled": "unlabelled",
}
# Seconds, or a time of day as pandas and audformat write it: `0 days 00:00:01.5`, `00:01,5`.
CLOCK = re.compile(r"(?:(\d+) days? )?(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)")


def read_label_table(path: Path) -> Annotations:
    """Read labels and whatever else a CSV says of its clips; a column of numbers (valence, ...) may be all labels.

    Raises MertoolError for all faults of the file at once.
    """
    table = read_table(path, "labels")
    columns = find_columns(table)
    if not columns.keys() & NUMBERS:
        require_columns(table, columns, "label")
    require_columns(table, columns, "name")
    return _read_rows(table, columns, ignored=("audio",))  # a manifest is a label table, too


def read_annotations(table: Table) -> Annotations:
    """Return whatever a table says of its clips; it needs no column but that of their names. Raises MertoolError."""
    columns = find_columns(table)
    require_columns(table, columns, "name")
    return _read_rows(table, columns, ignored=("audio",))


def read_transcript_table(path: Path, language: str | None = None) -> Annotations:
    """Read transcripts by clip from a CSV (`name,chinese,english`, `clip,text`, ...), without empty ones and NaN.

    `language` is one of LANGUAGES, for a table that has a column for each.
    """
    table = read_table(path, "transcripts")
    columns = find_columns(table)
    columns = {field: columns[field] for field in ("name", "path", "text", "start", "end") if field in columns}
    if language:
        if language not in table.columns:
            raise MertoolError(
                f"{path} has no column '{language}': it has {', '.join(table.columns)}; leave out --language"
            )
        columns["text"] = language
    require_columns(table, columns, "text")
    notes = []
    if not language and columns["text"] in LANGUAGES and set(LANGUAGES) <= set(table.columns):
        notes = [f"transcripts are of the column '{columns['text']}'; --language {LANGUAGES[1]} reads the other one"]
    # A file may hold labels as well, which are read by --labels.
    known = [name for names in COLUMN_NAMES.values() for name in names]
    annotations = _read_rows(table, columns, ignored=(*known, "audio"), notes=notes)
    rows = tuple(row for row in annotations.rows if row.text and row.text.lower() != EMPTY)
    return Annotations(path=path, rows=rows, notes=annotations.notes)


def read_clip_names(path: Path, content: str) -> list[str]:
    """Return the clip id of every row of a list of clips; `content` says in messages what the file should hold."""
    table = read_table(path, content)
    columns = find_columns(table)
    require_columns(table, columns, "name")
    return [clip_id(row[columns["name"]]) for row in table.rows]


def find_columns(table: Table) -> dict[str, str]:
    """Return the column of each field that the table has. Raises MertoolError if such a column is there twice."""
    columns = {}
    for field, names in COLUMN_NAMES.items():
        column = next((name for name in names if name in table.columns), None)
        if column and table.columns.count(column) > 1:
            raise MertoolError(f"{table.path}: column '{column}' stands twice: rename one of them")
        if column:
            columns[field] = column
    if "name" not in columns and "path" in columns:
        columns["name"] = columns.pop("path")
    return columns


def require_columns(table: Table, columns: dict[str, str], field: str) -> None:
    """Raise MertoolError unless the table has the columns of clip names and of a field."""
    for required, words in {field: field, "name": "clip name"}.items():
        if required not in columns:
            valid = (*COLUMN_NAMES[required], *(COLUMN_NAMES["path"] if required == "name" else ()))
            raise MertoolError(
                f"{table.path} has no {words} column: it has {', '.join(table.columns) or 'none'}; "
                f"valid: {', '.join(valid)}"
            )


def _read_rows(
    table: Table, columns: dict[str, str], *, ignored: Sequence[str] = (), notes: Sequence[str] = ()
) -> Annotations:
    faults: list[str] = []
    rows = []
    for number, cells in zip(table.row_numbers, table.rows, strict=True):
        values = {field: normalize(cells[column]) for field, column in columns.items()}
        row, row_faults = _read_row(values)
        faults += [f"row {number}: {fault}" for fault in row_faults]
        if row.name:
            rows.append(row)
    if faults:
        raise combine_errors(str(table.path), faults)
    unused = [name for name in table.columns if name and name not in {*columns.values(), *ignored}]
    if unused:
        notes = (*notes, f"columns of {table.path} that are not used: {', '.join(unused)}")
    return Annotations(path=table.path, rows=tuple(rows), notes=(*table.notes, *notes))


def _read_row(values: dict[str, str]) -> tuple[Annotation, list[str]]:
    """Return the annotation of a row, and the faults of the row."""
    faults: list[str] = []
    name, path = values.get("name", ""), values.get("path", "")
    split = values.get("split", "").lower()
    split = SPLIT_ALIASES.get(split, split)
    if split and split not in SPLITS:
        faults.append(f"unknown split '{split}': {suggest(split, SPLITS)}valid: {', '.join(SPLITS)}")
    start, end = (parse_seconds(values.get(field, "")) for field in ("start", "end"))
    for field, seconds in (("start", start), ("end", end)):
        if seconds is not None and not math.isfinite(seconds):
            faults.append(f"{field} '{values[field]}' is not a number of seconds")
    faults = faults or time_faults(start, end)
    row = Annotation(
        name=path or name,
        clip=clip_id(name) if path and name else None,
        label=values.get("label") or None,
        text=values.get("text") or None,
        speaker=values.get("speaker") or None,
        gender=values.get("gender") or None,
        split=split or None,
        start=start or None,  # a segment that begins at 0 and has no end is the whole file
        end=end,
        valence=_parse_number(values, "valence", faults),
        arousal=_parse_number(values, "arousal", faults),
        sentiment=_parse_number(values, "sentiment", faults),
    )
    return row, faults


def _parse_number(values: dict[str, str], name: str, faults: list[str]) -> float | None:
    cell = values.get(name, "")
    return None if cell.lower() == EMPTY else parse_number(cell, name, faults)


def parse_seconds(text: str) -> float | None:
    """Return a time in seconds, None for an empty cell and NaN for what is no time.

    >>> parse_seconds("1.5"), parse_seconds("00:01:02,5"), parse_seconds("")
    (1.5, 62.5, None)
    """
    if not text or text == "NaT":
        return None
    if match := CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (float((digits or "0").replace(",", ".")) for digits in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    try:
        return float(text)
    except ValueError:
        return math.nan

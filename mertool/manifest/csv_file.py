"""The CSV file of a manifest: reading with every fault at once, and writing."""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mertool.errors import MertoolError, combine_errors, count_of, suggest
from mertool.files import write_atomic
from mertool.manifest.clips import COLUMNS, SPLITS, Clip
from mertool.manifest.folder import is_utf8, printable_path
from mertool.manifest.names import clip_id_faults
from mertool.manifest.numbers import NUMBERS, parse_number
from mertool.tables import normalize, read_table

REQUIRED_COLUMNS = ("clip", "path")


def read_clips(path: Path) -> tuple[tuple[Clip, ...], tuple[str, ...]]:
    """Return the clips of a manifest, and notes for the user. Raises one MertoolError for all faults of the file."""
    table = read_table(path, "manifest")
    if faults := _header_faults(table.columns):
        raise combine_errors(str(path), faults)
    faults = []
    clips: list[Clip] = []
    first_row: dict[str, int] = {}
    for number, cells in zip(table.row_numbers, table.rows, strict=True):
        if number in table.uneven:
            faults.append(f"row {number} has {table.uneven[number]} cells, the header {len(table.columns)}")
            continue
        clip, row_faults = _read_row({name: cell.strip() for name, cell in cells.items()}, path.parent)
        faults += [f"row {number}: {fault}" for fault in row_faults]
        if clip.clip in first_row:
            faults.append(f"row {number}: clip id '{clip.clip}' stands already in row {first_row[clip.clip]}")
        first_row.setdefault(clip.clip, number)
        clips.append(clip)
    if faults:
        raise combine_errors(str(path), faults)
    if not clips:
        raise MertoolError(f"{path} holds no clip: a header and at least one row are needed")
    _check_locale(clips)
    return tuple(clips), table.notes


def _header_faults(columns: tuple[str, ...]) -> list[str]:
    valid = f"valid: {','.join(COLUMNS)}"
    faults = [f"unknown column '{name}': {suggest(name, COLUMNS)}{valid}" for name in columns if name not in COLUMNS]
    faults += [f"column '{name}' stands twice" for name, count in Counter(columns).items() if count > 1]
    faults += [f"column '{name}' is missing; {valid}" for name in REQUIRED_COLUMNS if name not in columns]
    return faults


def _read_row(cells: dict[str, str], folder: Path) -> tuple[Clip, list[str]]:
    """Return the clip of a row, and the faults of the row."""
    name = normalize(cells["clip"])
    faults = clip_id_faults(name)
    paths = {column: folder / cells[column] if cells.get(column) else None for column in ("path", "audio")}
    if not any(paths.values()) and not any(cells.get(column) for column in ("text", "label", "split")):
        faults.append("path is empty, and there is no text, label or split either")
    split = cells.get("split") or None
    if split and split not in SPLITS:
        faults.append(f"unknown split '{split}': {suggest(split, SPLITS)}valid: {', '.join(SPLITS)}")
    times = {column: _read_seconds(cells.get(column, ""), column, faults) for column in ("start", "end")}
    faults += time_faults(times["start"], times["end"])
    numbers = {name: parse_number(cells.get(name, ""), name, faults) for name in NUMBERS}
    clip = Clip(
        clip=name,
        path=paths["path"],
        label=cells.get("label") or None,
        text=cells.get("text") or None,
        speaker=normalize(cells.get("speaker", "")) or None,
        split=split,
        start=times["start"],
        end=times["end"],
        audio=paths["audio"],
        gender=cells.get("gender") or None,
        **numbers,
    )
    return clip, faults


def _read_seconds(cell: str, column: str, faults: list[str]) -> float | None:
    """Return a time; a cell that is none is added to the faults."""
    if not cell:
        return None
    try:
        seconds = float(cell)
    except ValueError:
        seconds = math.nan
    if math.isfinite(seconds):
        return seconds
    faults.append(f"{column} '{cell}' is not a number of seconds")
    return None


def time_faults(start: float | None, end: float | None) -> list[str]:
    """Return the fault of the times of a clip, if they are none of a part of a file."""
    if (start is not None and not start >= 0) or (end is not None and not end > (start or 0)):
        return [f"start {start} and end {end}: 0 <= start < end is needed"]
    return []


def _check_locale(clips: Iterable[Clip]) -> None:
    """Raise MertoolError if the locale cannot name the files, which would else be missing."""
    for clip in clips:
        try:
            os.fsencode(clip.path or "")
            os.fsencode(clip.audio or "")
        except UnicodeEncodeError as error:
            raise MertoolError(
                f"this locale has the encoding {error.encoding}, in which the file of clip '{clip.clip}' has no name: "
                "set LC_ALL=C.UTF-8 or PYTHONUTF8=1 and run the command again"
            ) from error


def write_clips(clips: Iterable[Clip], path: Path) -> None:
    """Write the CSV, with paths relative to its folder; numbers that no clip has get no column.

    Raises MertoolError for a file name that is not in UTF-8.
    """
    clips = tuple(clips)
    rated = {name for clip in clips for name in clip.numbers}
    columns = [name for name in COLUMNS if name not in NUMBERS or name in rated]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for clip in clips:
        if not is_named_in_utf8(clip):
            raise MertoolError(f"{path} cannot name {_media_name(clip)}, which is not in UTF-8: rename the file")
        writer.writerow(_cells(clip, columns, path.absolute().parent))
    write_atomic(path, buffer.getvalue())


def is_named_in_utf8(clip: Clip) -> bool:
    """Return whether a CSV in UTF-8 can name the files of a clip; file names are bytes on Linux."""
    return all(is_utf8(file) for file in (clip.path, clip.audio) if file is not None)


def describe_unnamed(clips: Sequence[Clip]) -> str:
    """Return a sentence about clips that are left out because of their file names."""
    return (
        f"{count_of(len(clips), 'clip')} left out, because a file name is not in UTF-8 (first: "
        f"{_media_name(clips[0])}): rename the file"
    )


def _media_name(clip: Clip) -> str:
    return printable_path(clip.path or clip.audio or Path())


def _cells(clip: Clip, columns: Sequence[str], folder: Path) -> list[str]:
    values = [getattr(clip, column) for column in columns]
    values = [_relative(value, folder) if isinstance(value, Path) else value for value in values]
    return ["" if value is None else str(value) for value in values]


def _relative(path: Path, folder: Path) -> str:
    relative = Path(os.path.relpath(path.absolute(), folder)).as_posix()
    # Cells are read without the spaces around them, which a file name may have.
    return relative if relative == relative.strip() else f"./{relative}"

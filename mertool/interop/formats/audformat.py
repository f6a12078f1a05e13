"""Databases of audformat: `db.yaml` and one table per file, `db.TABLE.csv` or `db.TABLE.parquet`.

Tables say something of files, or of segments with start and end; their columns are of schemes, whose labels may be
codes (`a01`) for texts, or name a table with facts about speakers. Splits are those of the tables. Source:
https://audeering.github.io/audformat/data-introduction.html and `core/table.py` of audeering/audformat.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mertool.errors import MertoolError
from mertool.interop.annotations import MERGED_FIELDS, Annotation, Annotations
from mertool.interop.columns import COLUMN_NAMES, parse_seconds
from mertool.interop.parquet import read_parquet
from mertool.manifest import NUMBERS, parse_number
from mertool.tables import Table, read_table
from mertool.untrusted import read_bytes

TITLE = "a folder of audformat with db.yaml"
PRIORITY = 2
HEADER = "db.yaml"
REMEDY = "give a database of audformat"
SPLITS = {"train": "train", "dev": "dev", "test": "test"}
# Fields that are read; other columns (duration, confidence, ...) are counted in a note.
FIELDS = ("label", "text", "speaker", "gender")
Times = tuple[float | None, float | None]


def recognises(path: Path) -> bool:
    """Return whether a path is that of a header, or of a folder that holds one."""
    return path.name == HEADER or (path / HEADER).is_file()


def read_labels(path: Path) -> Annotations:
    """Return labels, texts, speakers and splits of all tables of a database, joined by file and segment.

    What a table says of a file holds for all its segments. Raises MertoolError for a database that cannot be read.
    """
    header_file = path if path.name == HEADER else path / HEADER
    database = _Database(header_file, _read_header(header_file))
    facts: defaultdict[str, defaultdict[Times, list[Annotation]]] = defaultdict(lambda: defaultdict(list))
    for name in database.section("tables"):
        for row in database.rows(name):
            facts[row.name][row.start, row.end].append(row)
    rows = [row for segments in facts.values() for row in _join_segments(segments)]
    return Annotations(path=path, rows=tuple(rows), notes=tuple(database.notes()))


def _join_segments(segments: dict[Times, list[Annotation]]) -> Iterator[Annotation]:
    """Yield the rows of a file's segments, each with what is said of the whole file; of a file without any its rows."""
    whole = segments.get((None, None), [])
    if len(segments) == 1:
        yield from next(iter(segments.values()))
        return
    for times, rows in segments.items():
        if times == (None, None):
            continue
        known = {field for field in MERGED_FIELDS for row in rows if getattr(row, field) is not None}
        yield from rows
        for row in whole:
            facts: dict[str, Any] = dict.fromkeys(known)
            yield replace(row, start=times[0], end=times[1], **facts)


@dataclass(frozen=True)
class _Database:
    """The header of a database, and the folder of its tables."""

    file: Path
    header: dict[str, Any]

    def section(self, name: str) -> dict[str, Any]:
        """Return a part of the header by the names of its entries."""
        content = self.header.get(name) or {}
        if not isinstance(content, dict) or not all(isinstance(entry, dict | None) for entry in content.values()):
            raise MertoolError(f"{self.file} is not a header of audformat ({name} is no mapping): {REMEDY}")
        return {str(key): entry or {} for key, entry in content.items()}

    def rows(self, name: str) -> Iterator[Annotation]:
        """Yield the rows of a table."""
        entry = self.section("tables")[name]
        table = self._table(name)
        if "file" not in table.columns:
            raise MertoolError(f"{table.path} has no column 'file': it has {', '.join(table.columns) or 'none'}")
        split = self._split(entry.get("split_id"))
        found = {field: column for field, column in self._columns(entry).items() if column.lower() in table.columns}
        columns = {field: column for field, column in found.items() if field in FIELDS}
        codes = {field: self._codes(entry["columns"][column]) for field, column in columns.items()}
        genders = self._speaker_genders()
        for number, cells in zip(table.row_numbers, table.rows, strict=True):
            start, end = (parse_seconds(cells.get(column, "")) for column in ("start", "end"))
            if start != start or end != end:
                raise MertoolError(f"{table.path}, row {number}: start or end is no time")
            values: dict[str, Any] = {
                field: codes[field].get(cell := cells[column.lower()].strip(), cell) or None
                for field, column in columns.items()
            }
            speaker = values.get("speaker")
            values.setdefault("gender", genders.get(speaker or "") or None)
            values |= _numbers(
                {field: cells[found[field].lower()] for field in NUMBERS if field in found}, table.path, number
            )
            yield Annotation(name=cells["file"], split=split, start=start or None, end=end, **values)

    def notes(self) -> Iterator[str]:
        """Yield a note on the columns that are not read."""
        unused: set[str] = set()
        for entry in self.section("tables").values():
            unused |= {str(name) for name in entry.get("columns") or {}} - set(self._columns(entry).values())
        if unused:
            yield f"columns of {self.file} that are not used: {', '.join(sorted(unused))}"

    def _table(self, name: str) -> Table:
        """Read the file of a table; it may be a pickle, too, which is not read."""
        files = [self.file.with_name(f"db.{name}.{suffix}") for suffix in ("csv", "parquet")]
        file = next(filter(Path.is_file, files), None)
        if file is None:
            raise MertoolError(
                f"{self.file} names the table '{name}', but {files[0]} is missing: load the database whole"
            )
        return read_parquet(file) if file.suffix == ".parquet" else read_table(file, "table")

    def _columns(self, entry: dict[str, Any]) -> dict[str, str]:
        """Return the column of each field that a table has, by its name or by the name of its scheme."""
        columns = entry.get("columns") or {}
        found: dict[str, str] = {}
        for field in (*FIELDS, *NUMBERS):
            for name, column in columns.items():
                scheme = str((column or {}).get("scheme_id") or "")
                if {str(name).lower(), scheme.lower()} & set(COLUMN_NAMES[field]):
                    found.setdefault(field, str(name))
        return found

    def _split(self, name: Any) -> str | None:
        kind = self.section("splits").get(str(name), {}).get("type")
        return SPLITS.get(str(kind))

    def _codes(self, column: dict[str, Any] | None) -> dict[str, str]:
        """Return the texts for which the labels of a column's scheme stand as codes; empty if they do not."""
        labels = self.section("schemes").get(str((column or {}).get("scheme_id")), {}).get("labels")
        entries = labels.items() if isinstance(labels, dict) else ()
        return {str(code): text.strip() for code, text in entries if isinstance(text, str)}

    def _speaker_genders(self) -> dict[str, str]:
        """Return the gender by speaker, from the labels of the scheme of speakers or the table that they name."""
        schemes = self.section("schemes")
        labels = next((schemes[name].get("labels") for name in COLUMN_NAMES["speaker"] if name in schemes), None)
        if isinstance(labels, dict):
            facts = {str(speaker): fact for speaker, fact in labels.items() if isinstance(fact, dict)}
            return {speaker: str(fact["gender"]) for speaker, fact in facts.items() if fact.get("gender")}
        if not isinstance(labels, str) or labels not in self.section("misc_tables"):
            return {}
        table = self._table(labels)
        if "gender" not in table.columns:
            return {}
        return {row[table.columns[0]]: row["gender"] for row in table.rows}


def _numbers(cells: dict[str, str], path: Path, row: int) -> dict[str, float | None]:
    """Return valence, arousal and sentiment of a row; raise MertoolError for a cell that is no such number."""
    faults: list[str] = []
    numbers = {name: parse_number(cell, name, faults) for name, cell in cells.items()}
    if faults:
        raise MertoolError(f"{path}, row {row}: {faults[0]}")
    return numbers


def _read_header(file: Path) -> dict[str, Any]:
    import yaml

    content = read_bytes(file, REMEDY)
    try:
        header = yaml.load(content.decode("utf-8-sig"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MertoolError(f"{file} is not YAML ({reason}): {REMEDY}") from error
    if not isinstance(header, dict) or not header.get("tables"):
        raise MertoolError(f"{file} is not a header of audformat with tables: {REMEDY}")
    return header

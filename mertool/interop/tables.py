"""CSV tables with one row per clip, whose columns have different names in different toolkits."""

import csv
from dataclasses import dataclass
from pathlib import Path

from mertool.errors import MertoolError

NAME_COLUMNS = ("clip", "name", "file", "filename")
MEDIA_SUFFIXES = (".mp4", ".avi", ".wav", ".flac", ".mp3", ".mov", ".mkv", ".m4a", ".webm", ".mpg")


@dataclass(frozen=True)
class ClipTable:
    """The rows of a CSV, and the column that names the clips; column names are compared in lower case.

    Attributes:
        path: The file.
        rows: Cells by column name.
        columns: Names of the columns.
    """

    path: Path
    rows: list[dict[str, str]]
    columns: list[str]

    @classmethod
    def read(cls, path: Path, content: str) -> "ClipTable":
        """Read a CSV in UTF-8; `content` says in error messages what the file should hold."""
        check_exists(path, content)
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
                return cls(path, [row for row in reader if any(row.values())], list(reader.fieldnames))
        except (UnicodeDecodeError, csv.Error) as error:
            raise MertoolError(f"{path} is not a CSV file in UTF-8 ({error})") from error

    def find_column(self, names: tuple[str, ...], content: str) -> str:
        """Return the first of `names` that is a column; raise MertoolError if there is none."""
        for name in names:
            if name in self.columns:
                return name
        raise MertoolError(
            f"{self.path} has no {content} column: it has {', '.join(self.columns) or 'none'}; "
            f"valid: {', '.join(names)}"
        )

    def clip_ids(self) -> list[str]:
        """Return the clip id of every row."""
        column = self.find_column(NAME_COLUMNS, "clip name")
        return [clip_id(row[column]) for row in self.rows]


def check_exists(path: Path, content: str) -> None:
    """Raise MertoolError if there is no file."""
    if not path.is_file():
        raise MertoolError(f"{content} file {path} does not exist")


def clip_id(name: str | None) -> str:
    """Return the clip id of a file name: without the suffix of a media file, but with other dots.

    >>> clip_id("sample_1.mp4"), clip_id("v1.2")
    ('sample_1', 'v1.2')
    """
    stripped = (name or "").strip()
    return stripped[: -len(Path(stripped).suffix)] if stripped.lower().endswith(MEDIA_SUFFIXES) else stripped

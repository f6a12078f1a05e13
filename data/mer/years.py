"""The table of the challenges, years.toml.

    python years.py 2024 fused

prints one entry of a year, which is how the Makefile reads the table.
"""

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("years.toml")


@dataclass(frozen=True, kw_only=True)
class Year:
    """One challenge; the fields are those of years.toml."""

    year: str
    classes: tuple[str, ...]
    labels: str
    candidates: tuple[str, ...]
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    fused: tuple[str, ...]
    submission: tuple[str, ...]
    foreign: tuple[str, ...] = ()
    rows: int | None = None
    audio: str = ""
    transcripts: str = ""
    asr: str = ""

    @property
    def name(self) -> str:
        """The challenge as it is called: MER2024."""
        return f"MER{self.year}"

    @property
    def videos(self) -> tuple[str, ...]:
        """All folders with videos, each once."""
        return tuple(dict.fromkeys((*self.labelled, *self.unlabelled)))


def read_years() -> dict[str, Year]:
    """Return the challenges by year, from the newest to the oldest."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    classes = tuple(table.pop("classes"))
    years = {name: Year(year=name, classes=classes, **_with_tuples(row)) for name, row in table.items()}
    return dict(sorted(years.items(), reverse=True))


def _with_tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def main() -> None:
    """Print an entry of the table."""
    year, entry = sys.argv[1:]
    years = read_years()
    if year not in years:
        sys.exit(f"Error: unknown YEAR '{year}': valid: {', '.join(years)}")
    value = getattr(years[year], entry)
    print(" ".join(value) if isinstance(value, tuple) else value)


if __name__ == "__main__":
    main()

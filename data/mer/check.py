"""Check a file to submit by the rules of MERTools' scoring scripts.

    python check.py 2024 submission.csv candidates.csv

The scripts match rows by name, look each label up among six words, and take a number for the valence of MER2023. So
the columns, the names (each candidate once, no other) and the words must be right; the order of the rows is free.
"""

import argparse
import csv
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from years import Year, read_years

from mertool.errors import MertoolError, check_choice, combine_errors
from mertool.interop.submission import list_names, read_candidates


def submission_faults(path: Path, candidates: Sequence[str], year: Year) -> Iterator[str]:
    """Yield what a scoring script would stumble over."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        columns = tuple(rows.fieldnames or ())
        if columns != year.submission:
            yield f"columns {','.join(columns) or 'none'} instead of {','.join(year.submission)}"
            return
        table = list(rows)
    names = [row["name"] for row in table]
    for problem, found in {
        "names that are listed more than once": [name for name, count in Counter(names).items() if count > 1],
        "candidates without a row": sorted(set(candidates) - set(names)),
        "names that are no candidates": sorted(set(names) - set(candidates)),
        "labels that are none of the challenge's": sorted({row["discrete"] for row in table} - set(year.classes)),
        "rows whose valence is no number": [row["name"] for row in table if not _is_number(row.get("valence", "0"))],
    }.items():
        if found:
            yield f"{problem}: {list_names(found)}"


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or ""))
    except ValueError:
        return False


def check_submission(path: Path, candidates: Path, year: Year) -> int:
    """Return the number of rows; raise one MertoolError for all faults."""
    if not path.is_file():
        raise MertoolError(f"{path} does not exist: give the file to submit")
    names = read_candidates(candidates)
    if faults := list(submission_faults(path, names, year)):
        raise combine_errors(f"{path} is no submission for {year.name}", faults)
    return len(names)


def main() -> None:
    """Check a submission; the exit code is 1 if it would be refused."""
    parser = argparse.ArgumentParser(description="Check a submission by the rules of MERTools.")
    parser.add_argument("year")
    parser.add_argument("submission", type=Path)
    parser.add_argument("candidates", type=Path, help="CSV with the names of the clips to submit")
    options = parser.parse_args()
    try:
        years = read_years()
        year = years[check_choice("YEAR", options.year, years)]
        rows = check_submission(options.submission, options.candidates, year)
    except MertoolError as error:
        sys.exit(f"Error: {error}")
    print(f"{options.submission}: {rows} rows, {','.join(year.submission)}: accepted by the rules of {year.name}")


if __name__ == "__main__":
    main()

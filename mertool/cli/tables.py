"""Tables of results that stay readable on a narrow terminal: no word is ever cut."""

import os
from collections.abc import Sequence
from typing import Any

from mertool.cli.console import echo

BORDERS = 3  # characters that a table of rich adds to each column, and one more in all


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; the first column is text, the others are numbers.

    Cells are wrapped between words where the table is wider than the terminal. Where that is not enough, each row
    becomes a few lines that name the columns. Without a terminal the table is as wide as it needs, unless COLUMNS is
    set.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    cells = [[str(cell) for cell in row] for row in rows]
    console = Console()
    has_limit = console.is_terminal or "COLUMNS" in os.environ
    lines = list(zip(*[columns, *cells], strict=True))
    widths = [max(cell_len(cell) for cell in column) for column in lines]
    shortest = [max(cell_len(word) for cell in column for word in cell.split() or [""]) for column in lines]
    if has_limit:
        available = console.width - BORDERS * len(columns) - 1
        if sum(shortest) > available:
            _print_records(title, columns, cells, width=console.width)
            return
        widths = fit_widths(widths, shortest, available)
    else:
        console.width = max(cell_len(title), sum(widths) + BORDERS * len(columns) + 1)
    console.print(Text(title, style="bold"))
    console.print(_draw(columns, cells, widths))


def fit_widths(widths: Sequence[int], shortest: Sequence[int], available: int) -> list[int]:
    """Return widths that sum up to `available` at most, none below its shortest; the widest column is narrowed first.

    >>> fit_widths([20, 10, 6], [5, 5, 5], 24)
    [9, 9, 6]
    """
    fitted = list(widths)
    while sum(fitted) > available:
        narrowable = [index for index, width in enumerate(fitted) if width > shortest[index]]
        widest = max(narrowable, key=lambda index: fitted[index])
        fitted[widest] -= 1
    return fitted


def _draw(columns: Sequence[str], cells: Sequence[Sequence[str]], widths: Sequence[int]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    drawn = Table()
    for number, (column, width) in enumerate(zip(columns, widths, strict=True)):
        drawn.add_column(escape(column), justify="right" if number else "left", overflow="fold", width=width)
    for row in cells:
        drawn.add_row(*map(escape, row))
    return drawn


def _print_records(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], *, width: int) -> None:
    """Print each row as its first cell, and below it `column: cell; column: cell`; empty cells are left out."""
    echo(title)
    for first, *others in cells:
        echo(f"  {first}")
        entries = [f"{column}: {cell}" for column, cell in zip(columns[1:], others, strict=True) if cell]
        line = ""
        for entry in entries:
            if line and len(f"    {line}; {entry}") > width:
                echo(f"    {line}")
                line = entry
            else:
                line = f"{line}; {entry}" if line else entry
        if line:
            echo(f"    {line}")

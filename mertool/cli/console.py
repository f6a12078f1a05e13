"""Output of the commands: lines, tables, JSON, progress, and the exit code of failed clips."""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from mertool.errors import MertoolError, combine_errors

LINE_EVERY = 15.0  # seconds between lines of progress where there is no terminal


def check_stores(*stores: Path) -> None:
    """Raise one error for all that cannot be opened, before the libraries load that take seconds."""
    from mertool.store import FeatureStore

    faults = []
    for path in stores:
        try:
            with FeatureStore(path):
                pass
        except MertoolError as error:
            faults.append(str(error))
    if faults:
        raise combine_errors("stores", faults) if len(faults) > 1 else MertoolError(faults[0])


def is_first_process() -> bool:
    """Whether this is the only process, or the one of several that reports."""
    return os.environ.get("RANK", "0") == "0"


def echo(text: str = "") -> None:
    """Print one line on standard output, with paths kept whole."""
    print(text)


def suggest_next(*words: object) -> None:
    """Suggest the next command, quoted so that it can be copied; WORDS IN CAPITALS are the reader's to fill in."""
    echo("next: " + shlex.join(["mertool", *map(str, words)]))


def warn(text: str) -> None:
    """Print one line on standard error."""
    print(text, file=sys.stderr)


def print_json(value: dict[str, Any]) -> None:
    """Print the result as one JSON object on standard output."""
    print(json.dumps(value, ensure_ascii=False))


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table; the first column is text, the others are numbers."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        drawn.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(escape(str(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = 140
    console.print(drawn)


def format_score(score: dict[str, float]) -> str:
    """`73.0 [70.1, 75.8]` in per cent."""
    return f"{100 * score['value']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def format_gain(gain: dict[str, float]) -> str:
    """`+1.2 [-0.3, +2.8], p = 0.110` in points."""
    low, high = (f"{100 * gain[name]:+.1f}" for name in ("low", "high"))
    return f"{100 * gain['difference']:+.1f} [{low}, {high}], p = {gain['p']:.3f}"


def format_run(name: str, folder: Path, reused: bool) -> str:
    """`run: runs/probe (reused, nothing changed)`."""
    return f"{name}: {folder}{' (reused, nothing changed)' if reused else ''}"


def format_duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(count: float) -> str:
    """`1.4 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class RateEstimator:
    """Words for how fast a stage goes: things and seconds of media per second, failures, time left.

    It counts from the first thing that is done: what comes before is loading, and says nothing about the rest.
    """

    def __init__(self, unit: str):
        self.unit = unit
        self.first: tuple[float, int, float] | None = None
        self.last = 0

    def describe(self, done: int, total: int, failed: int, media: float) -> str:
        """`3.4 clips/s, 12 s of media/s, 2 failed, 12 min left`."""
        now = time.monotonic()
        if self.first is None or done < self.last:  # the next part of the work counts anew
            self.first = (now, done, media)
        self.last = done
        since, before, heard = self.first
        passed, new = now - since, done - before
        parts = []
        if passed > 0 and new > 0:
            parts.append(f"{new / passed:.1f} {self.unit}/s")
            if media > heard:
                parts.append(f"{(media - heard) / passed:.0f} s of media/s")
        if failed:
            parts.append(f"{failed} failed")
        if passed > 0 and new > 0:
            parts.append(f"{format_duration(passed * (total - done) / new)} left")
        return ", ".join(parts)


@contextmanager
def progress(title: str, quiet: bool, unit: str = "clips") -> Iterator[Callable[..., None]]:
    """A function (done, total, failed=0, seconds of media=0) that shows how far a stage is, on standard error."""
    if quiet:
        yield lambda *_: None
    elif sys.stderr.isatty():
        with _bar(title, unit) as update:
            yield update
    else:
        yield _Lines(title, unit)


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn(unit + " {task.fields[pace]}"),
    )
    pace = RateEstimator(unit)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, pace="")

        def update(done: int, total: int, failed: int = 0, media: float = 0.0) -> None:
            bar.update(task, completed=done, total=total, pace=pace.describe(done, total, failed, media))

        yield update


class _Lines:
    """Progress without a terminal: a line now and then."""

    def __init__(self, title: str, unit: str):
        self.title, self.unit, self.pace = title, unit, RateEstimator(unit)
        self.last = time.monotonic()

    def __call__(self, done: int, total: int, failed: int = 0, media: float = 0.0) -> None:
        now = time.monotonic()
        pace = self.pace.describe(done, total, failed, media)
        if now - self.last < LINE_EVERY or not done:
            return
        self.last = now
        warn(f"{self.title}: " + ", ".join(filter(None, [f"{done} of {total} {self.unit}", pace])))


def check_failed(share: float, features: int, most: float, where: str) -> None:
    """Exit with 3 if too many clips failed, or none gave anything."""
    if features == 0:
        warn(f"no clip gave anything; the reasons are in {where}")
        raise typer.Exit(3)
    if share > most:
        warn(f"{share:.1%} of the clips failed, more than --max-failed {most:g}; the reasons are in {where}")
        raise typer.Exit(3)

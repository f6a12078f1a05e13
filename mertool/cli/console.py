"""Output of the commands: lines, tables, JSON, progress, and the exit code of failed clips."""

import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from mertool.errors import MertoolError, MertoolWarning, combine_errors

SECONDS_BETWEEN_LINES = 15.0  # of progress, where there is no terminal


def check_stores(*stores: Path) -> None:
    """Raise one error for all stores that cannot be opened, before the heavy libraries load."""
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
    """True in the process that reports: the only one, or the first of several (RANK is set by torchrun)."""
    return os.environ.get("RANK", "0") == "0"


def echo(text: str = "") -> None:
    """Print one line on standard output, with paths kept whole."""
    print(text)


def suggest_next(words: Sequence[object]) -> None:
    """Suggest the next command, quoted so that it can be copied; WORDS IN CAPITALS are the reader's to fill in."""
    echo("next: " + shlex.join(["mertool", *map(str, words)]))


def warn(text: str) -> None:
    """Print one line on standard error."""
    print(text, file=sys.stderr)


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Print each warning of mertool as one line on standard error, in the first of several processes."""
    show = warnings.showwarning
    shown: set[str] = set()

    def print_warning(message: Any, category: Any, *details: Any, **more: Any) -> None:
        if not issubclass(category, MertoolWarning):
            show(message, category, *details, **more)
        elif is_first_process() and str(message) not in shown:
            shown.add(str(message))
            warn("note: " + " ".join(str(message).split()))

    with warnings.catch_warnings():
        # Python itself would show a line once in a process, which may run several commands.
        warnings.simplefilter("always", MertoolWarning)
        warnings.showwarning = print_warning
        yield


def print_json(value: dict[str, Any]) -> None:
    """Print the result as one JSON object on standard output."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text)


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
    # Without a terminal rich assumes 80 columns, in which the cells of wide tables would be folded.
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
    """Rate of a stage in words: items and seconds of media per second, failures, remaining time.

    The rate counts from the first item that is done, because loading comes before it and says nothing about the rest.
    """

    def __init__(self, unit: str):
        self.unit = unit
        self.first: tuple[float, int, float] | None = None
        self.last_done = 0

    def describe(self, done: int, total: int, failed: int, media_seconds: float) -> str:
        """`3.4 clips/s, 12 s of media/s, 2 failed, 12 min left`."""
        now = time.monotonic()
        if self.first is None or done < self.last_done:  # the next phase of a stage has a rate of its own
            self.first = (now, done, media_seconds)
        self.last_done = done
        started, first_done, first_media = self.first
        elapsed, n_items = now - started, done - first_done
        rates, remaining = [], []
        if elapsed > 0 and n_items > 0:
            rates.append(f"{n_items / elapsed:.1f} {self.unit}/s")
            if media_seconds > first_media:
                rates.append(f"{(media_seconds - first_media) / elapsed:.0f} s of media/s")
            remaining.append(f"{format_duration(elapsed * (total - done) / n_items)} left")
        failures = [f"{failed} failed"] if failed else []
        return ", ".join(rates + failures + remaining)


@contextmanager
def progress(title: str, quiet: bool, unit: str = "clips") -> Iterator[Callable[..., None]]:
    """A function (done, total, failed=0, seconds of media=0) that shows how far a stage is, on standard error."""
    if quiet:
        yield lambda *_: None
    elif sys.stderr.isatty():
        with _bar(title, unit) as update:
            yield update
    else:
        yield _ProgressLines(title, unit)


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn(unit + " {task.fields[rate]}"),
    )
    estimator = RateEstimator(unit)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, rate="")

        def update(done: int, total: int, failed: int = 0, media_seconds: float = 0.0) -> None:
            bar.update(task, completed=done, total=total, rate=estimator.describe(done, total, failed, media_seconds))

        yield update


class _ProgressLines:
    """Progress without a terminal: a line at most every SECONDS_BETWEEN_LINES."""

    def __init__(self, title: str, unit: str):
        self.title, self.unit, self.estimator = title, unit, RateEstimator(unit)
        self.last_line = time.monotonic()

    def __call__(self, done: int, total: int, failed: int = 0, media_seconds: float = 0.0) -> None:
        now = time.monotonic()
        # The estimator sees every call, those without a line too, because it notices where a phase begins.
        rate = self.estimator.describe(done, total, failed, media_seconds)
        if now - self.last_line < SECONDS_BETWEEN_LINES or not done:
            return
        self.last_line = now
        warn(f"{self.title}: " + ", ".join(filter(None, [f"{done} of {total} {self.unit}", rate])))


def check_failed(share: float, n_features: int, *, max_failed: float, reasons: str) -> None:
    """Exit with 3 if too many clips failed, or none has features; `reasons` says where they are listed."""
    if n_features == 0:
        warn(f"no clip gave anything; the reasons are in {reasons}")
        raise typer.Exit(3)
    if share > max_failed:
        warn(f"{share:.1%} of the clips failed, more than --max-failed {max_failed:g}; the reasons are in {reasons}")
        raise typer.Exit(3)

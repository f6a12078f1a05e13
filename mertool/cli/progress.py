"""Progress of a long stage on standard error: a bar, or lines where there is no terminal; rate and remaining time."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mertool.cli.console import format_duration, warn

SECONDS_BETWEEN_LINES = 15.0  # of progress, where there is no terminal
# Before these an estimate would be made of start-up and of a single batch.
MIN_SECONDS, MIN_ITEMS = 10.0, 10
MAX_POINTS = 60  # that the rate is measured over, a second apart or more: an early slow minute is forgotten
# So many items within a second were not done now: they were found in a cache, or left out by early stopping.
MIN_SKIPPED_ITEMS, MIN_SKIPPED_SHARE = 10, 0.02


@dataclass(frozen=True)
class _Point:
    """The number of items that are done, and the seconds of media in them, at a time of the monotonic clock."""

    time: float
    done: int
    media_seconds: float


class RateEstimator:
    """Rate of a stage in words: items and seconds of media per second, failures, remaining time.

    The rate counts what is done in this run, from the first item on: loading comes before it, and says nothing about
    the rest. It is silent until it means something.
    """

    def __init__(self, unit: str):
        self.unit = unit
        self._points: list[_Point] = []
        self._last = _Point(float("-inf"), 0, 0.0)

    def describe(self, done: int, total: int, *, failed: int, media_seconds: float) -> str:
        """`3.4 clips/s, 12 s of media/s, 2 failed, 12 min left`."""
        self._record(_Point(time.monotonic(), done, media_seconds), total)
        failures = [f"{failed} failed"] if failed else []
        first, last = self._points[0], self._last
        elapsed, n_items = last.time - first.time, last.done - first.done
        if elapsed < MIN_SECONDS or n_items < MIN_ITEMS:
            return ", ".join(failures)
        rates = [f"{n_items / elapsed:.1f} {self.unit}/s"]
        if last.media_seconds > first.media_seconds:
            rates.append(f"{(last.media_seconds - first.media_seconds) / elapsed:.0f} s of media/s")
        remaining = f"{format_duration(elapsed * (total - done) / n_items)} left"
        return ", ".join([*rates, *failures, remaining])

    def _record(self, point: _Point, total: int) -> None:
        """Add a point; the rate begins anew with a phase of the stage, and after items that were not done now."""
        skipped = point.done - self._last.done > max(MIN_SKIPPED_ITEMS, MIN_SKIPPED_SHARE * total)
        if point.done < self._last.done or (skipped and point.time - self._last.time < 1):
            self._points.clear()
        if not self._points or point.time - self._points[-1].time >= 1:
            self._points.append(point)
            # Of a slow stage too few items would be left, so its points are kept.
            if len(self._points) > MAX_POINTS and point.done - self._points[1].done >= MIN_ITEMS:
                del self._points[0]
        self._last = point


@contextmanager
def progress(title: str, quiet: bool, unit: str = "clips") -> Iterator[Callable[..., None]]:
    """A function (done, total, failed=0, seconds of media=0) that shows how far a stage is, on standard error."""
    if quiet:
        yield lambda *_: None
    elif sys.stderr.isatty():
        with _bar(title, unit) as update:
            yield update
    else:
        yield _lines(title, unit)


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

        def update(done: int, total: int, *counts: float) -> None:
            bar.update(task, completed=done, total=total, rate=_describe(estimator, done, total, counts=counts))

        yield update


def _lines(title: str, unit: str) -> Callable[..., None]:
    """Progress without a terminal: a line at most every SECONDS_BETWEEN_LINES."""
    estimator, last_line = RateEstimator(unit), time.monotonic()

    def update(done: int, total: int, *counts: float) -> None:
        nonlocal last_line
        # The estimator sees every call, those without a line too, because it notices where a phase begins.
        rate = _describe(estimator, done, total, counts=counts)
        now = time.monotonic()
        if now - last_line < SECONDS_BETWEEN_LINES or not done:
            return
        last_line = now
        warn(f"{title}: " + ", ".join(filter(None, [f"{done} of {total} {unit}", rate])))

    return update


def _describe(estimator: RateEstimator, done: int, total: int, *, counts: tuple[float, ...]) -> str:
    """Call the estimator with the counts that a stage gives: failed clips and seconds of media, or none."""
    failed, media_seconds, *_ = (*counts, 0, 0.0)
    return estimator.describe(done, total, failed=int(failed), media_seconds=media_seconds)

"""Output of the commands: lines, JSON, and the exit code of failed clips."""

import json
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from mertool.errors import MertoolError, MertoolWarning, combine_errors, count_of


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


def format_score(score: Mapping[str, float | None], percent: bool = True) -> str:
    """`73.0 [70.1, 75.8]` in per cent, `73.0` without an interval, `0.730 [0.701, 0.758]` not in per cent."""
    return _format_interval(score, "value", percent=percent)


def format_gain(gain: Mapping[str, Any], percent: bool = True) -> str:
    """`+1.2 [-0.3, +2.8], p = 0.110` in points; with the p of Holm, `p = 0.110 (Holm 0.220)`."""
    adjusted = f" (Holm {gain['p_holm']:.3f})" if "p_holm" in gain else ""
    return f"{_format_interval(gain, 'difference', percent=percent, sign='+')}, p = {gain['p']:.3f}{adjusted}"


def format_test(gain: Mapping[str, Any]) -> str:
    """`sign-flip test over 24 speakers`."""
    return f"sign-flip test over {count_of(gain['units'], gain['unit'].removesuffix('s'))}"


def format_intervals(unit: str, score: Mapping[str, float | None]) -> str:
    """`95 % intervals over speakers`, or why there are none in a table that holds `score`."""
    if score["low"] is not None:
        return f"95 % intervals over {unit}"
    return "no intervals: they need 5 speakers or more" if unit == "speakers" else "no intervals: they need two clips"


def _format_interval(score: Mapping[str, Any], name: str, *, percent: bool, sign: str = "") -> str:
    factor, digits = (100, 1) if percent else (1, 3)
    value, *bounds = (
        score[key] if score[key] is None else f"{factor * score[key]:{sign}.{digits}f}" for key in (name, "low", "high")
    )
    return str(value) if None in bounds else f"{value} [{', '.join(map(str, bounds))}]"


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


def check_failed(share: float, n_features: int, *, max_failed: float, reasons: str) -> None:
    """Exit with 3 if too many clips failed, or none has features; `reasons` says where they are listed."""
    if n_features == 0:
        warn(f"no clip gave anything; the reasons are in {reasons}")
        raise typer.Exit(3)
    if share > max_failed:
        warn(f"{share:.1%} of the clips failed, more than --max-failed {max_failed:g}; the reasons are in {reasons}")
        raise typer.Exit(3)

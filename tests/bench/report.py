"""Rows of a benchmark, and what they were measured on: a table on the screen, a JSON file beside it."""

import json
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
QUIET = 0.1  # share of the processor that others may use
PACKAGES = ("mertool", "torch", "transformers", "av", "decord", "facenet-pytorch", "h5py", "numpy")


@dataclass(frozen=True)
class Row:
    """One figure: `value` against `baseline`, both in `unit`; `fields` stand beside them in the JSON only."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many baselines the value is."""
        return self.value / self.baseline if self.baseline else None

    def to_json(self) -> dict[str, Any]:
        figures = {"value": self.value, "unit": self.unit, "baseline": self.baseline, "ratio": self.ratio}
        return {"name": self.name, **figures, **self.fields}


def say(message: str) -> None:
    """A line of progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def others() -> float:
    """Share of the processor that other programs use at this moment; figures taken beside them are too low."""
    import psutil

    share = psutil.cpu_percent(interval=1.0) / 100
    if share > QUIET:
        say(f"note: other programs use {share:.0%} of the processor: measure again when it is idle")
    return share


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for models, clips and stores, removed afterwards, also when terminated; TMPDIR says where."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with TemporaryDirectory(prefix="mertool-bench-") as folder:
        yield Path(folder)


def publish(rows: Sequence[Row], path: Path, title: str) -> None:
    """Write the JSON and print the table."""
    content = {"machine": machine(), "versions": versions(), "rows": [row.to_json() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _print_table(rows, title)
    say(f"written: {path}")


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, GPU."""
    import psutil
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _processor(),
        "cores": cores,
        "memory": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str | None]:
    """Of Python and the packages that do the work; None for one that is not installed."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}}


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _print_table(rows: Sequence[Row], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    has_goals = any("goal" in row.fields for row in rows)
    for heading in ("name", "value", "baseline", "unit", "ratio", *(["goal"] if has_goals else [])):
        table.add_column(heading, justify="left" if heading in ("name", "unit") else "right")
    for row in rows:
        goal = [_short(row.fields.get("goal"))] if has_goals else []
        table.add_row(row.name, _short(row.value), _short(row.baseline), row.unit, _short(row.ratio), *goal)
    Console().print(table)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"

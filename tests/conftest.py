"""Fixtures that all tests share: the demo clips, the command line. More are in `fixtures/`.

Everything is offline and of random weights.
"""

import csv
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("COLUMNS", None)  # pytest-xdist sets 80 in its workers, and tables would wrap

pytest_plugins = [
    "fixtures.encoders",
    "fixtures.pipeline",
    "fixtures.reported",
    "fixtures.whisper",
    "fixtures.mer_releases",  # last, because it imports fixtures of the pipeline
]

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "data" / "demo"
COLUMNS = ("clip", "path", "label", "text", "speaker", "split", "start", "end")
NUMBERS = ("valence", "arousal", "sentiment")  # columns where a row has one


# ---------------------------------------------------------------- the demo, the command line


@pytest.fixture(scope="session", autouse=True)
def _same_numbers_on_every_cpu() -> Iterator[None]:
    """`--dtype auto` is float32 here also on a CPU that computes bfloat16; tests of bfloat16 ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mertool.devices.computes_bfloat16", lambda device: device.type == "cuda")
        yield


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder data/demo."""
    return DEMO


@pytest.fixture(scope="session")
def demo_rows() -> dict[str, dict[str, str]]:
    """Rows of the demo's manifest by clip id, paths absolute."""
    with open(DEMO / "manifest.csv", newline="", encoding="utf-8") as file:
        return {row["clip"]: {**row, "path": str(DEMO / row["path"])} for row in csv.DictReader(file)}


@pytest.fixture(scope="session")
def write_manifest() -> Callable[[Path, Iterable[dict[str, str]]], Path]:
    """A function (path, rows) that writes a manifest CSV; absolute paths in rows become relative to it."""

    def write(path: Path, rows: Iterable[dict[str, str]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = list(rows)
        columns = [*COLUMNS, *(name for name in NUMBERS if any(name in row for row in rows))]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            writer.writeheader()
            for row in rows:
                where = row["path"]
                where = os.path.relpath(where, path.parent.absolute()) if os.path.isabs(where) else where
                writer.writerow({**row, "path": where})
        return path

    return write


@pytest.fixture(scope="session")
def reorder_rows() -> Callable[[Path, Path, str], Path]:
    """A function (source, target, order) that writes the rows of a CSV `reversed` or `shuffled`; the target's path."""

    def write(source: Path, target: Path, order: str) -> Path:
        header, *rows = source.read_text(encoding="utf-8").splitlines()
        reordered = rows[::-1] if order == "reversed" else random.Random(1).sample(rows, len(rows))
        target.write_text("\n".join([header, *reordered]) + "\n", encoding="utf-8")
        return target

    return write


@pytest.fixture(scope="session")
def run_cli() -> Callable[..., subprocess.CompletedProcess]:
    """`python -m mertool ARGS` in a process of its own, without a hub."""

    def run(*args: object, cwd: Path | None = None, timeout: float = 120, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "mertool", *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **env},
        )

    return run


@pytest.fixture(scope="session")
def invoke() -> Callable[..., Any]:
    """The command line in this process: `result.exit_code`, `.stdout`, `.stderr`, `.exception`."""
    from typer.testing import CliRunner

    from mertool.cli import app

    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="session")
def call(invoke: Callable[..., Any]) -> Callable[..., Any]:
    """Like `invoke`, for commands that must succeed."""

    def run(*args: object) -> Any:
        result = invoke(*args)
        if result.exit_code != 0:
            raise AssertionError(f"mertool {' '.join(map(str, args))}: {result.exception!r}\n{result.stderr}")
        return result

    return run

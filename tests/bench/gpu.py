"""Everything that only a GPU can show, in one command that resumes: `make gpu`.

    python tests/bench/gpu.py
    python tests/bench/gpu.py --only encoders profile
    python tests/bench/gpu.py --device cpu --tiny

Runs the parts of PARTS one after the other, each in a process of its own, prints one table and writes
build/bench/gpu.json. The rows of a finished part are kept in build/bench/gpu/, so that a killed run goes on with the
next part; they are measured again after a change of the code, of the GPU or of torch, and with `--again`. A part that
takes too long is stopped and told, and the others go on. All parts together have `--minutes`.

Exits with 77 where there is no GPU, 1 if a part failed or a test did, else 0. `--device cpu --tiny` rehearses all parts
with tiny models in about a minute; what it prints measures nothing.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from report import ROOT, Row, publish, say, versions

RESULT = ROOT / "build" / "bench" / "gpu.json"
BENCH = Path(__file__).parent
NO_GPU = 77  # as test suites report a skip
GOALS = {
    "gpu/hubert-large-equal": 0.4,
    "gpu/hubert-large-sorted": 0.4,
    "audio/hubert-large": 20.0,
    "fuse/protocol": 30.0,
}  # of the ratio
CLIPS, TINY_CLIPS = ("--clips", "32", "--repeat", "2"), ("--clips", "2", "--repeat", "1", "--tiny")


@dataclass(frozen=True)
class Part:
    """A script of this folder with its options, and the minutes that it may take."""

    script: str
    minutes: float
    full: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ("--tiny",)

    def command(self, options: argparse.Namespace, output: Path) -> list[str]:
        """Return the command that writes the rows of this part to `output`."""
        given = self.tiny if options.tiny else self.full
        return [sys.executable, str(BENCH / self.script), *given, "--device", options.device, "--output", str(output)]


PARTS = {
    "tests": Part("gpu.py", 8, ("--tests",), ("--tests", "--tiny")),
    "encoders": Part("gpu_encoders.py", 4),
    "profile": Part("gpu_encoders.py", 3, ("--profile",), ("--profile", "--tiny")),
    "audio": Part(
        "extract.py",
        6,
        (*CLIPS, "--copies", "32", "--round", "1024", "--only", "audio/hubert-large"),
        (*TINY_CLIPS, "--copies", "2", "--only", "audio/hubert-large"),
    ),
    "video": Part(
        "extract.py",
        6,
        (*CLIPS, "--copies", "4", "--round", "128", "--only", "video/clip-vit-l14"),
        (*TINY_CLIPS, "--only", "video/clip-vit-l14"),
    ),
    "probe": Part("probe.py", 4, ("--layers", "1", "--only", "logistic", "ridge"), ("--tiny", "--only", "ridge")),
    "fuse": Part("fuse.py", 4, ("--turns", "1"), ("--tiny", "--turns", "1")),
}


def main() -> int:
    options = parse()
    options.device = find_device(options.device)
    if not options.device or (options.device == "cpu" and not options.tiny):
        say("no GPU: nothing was measured (`mertool doctor` shows what this machine has)")
        return NO_GPU
    if options.tests:
        publish(run_tests(options), options.output, "tests on the device")
        return 0
    kept, deadline, failed = options.output.with_suffix(""), time.monotonic() + 60 * options.minutes, []
    rows: list[dict[str, Any]] = []
    for name in options.only:
        found = run_part(name, options, kept, deadline)
        rows += found or []
        failed += [] if found else [name]
    table = [to_row(row) for row in rows]
    publish(table, options.output, "tiny models: a rehearsal" if options.tiny else "what the GPU shows")
    failed_tests = sum(row.value for row in table if row.name in ("tests/failed", "tests/errors"))
    for name in failed:
        say(f"part '{name}' has no figures: run again to measure it")
    return 1 if failed or failed_tests else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Everything that only a GPU can show.")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps; cpu with --tiny")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    parser.add_argument("--minutes", type=float, default=35.0, help="for all parts together (default: 35)")
    parser.add_argument("--again", action="store_true", help="measure finished parts again")
    parser.add_argument("--tiny", action="store_true", help="tiny models: a rehearsal")
    parser.add_argument("--tests", action="store_true", help="the tests only, in this process")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    return parser.parse_args()


def find_device(name: str) -> str:
    """Return the device's name, `auto` resolved; "" if there is none."""
    from mertool.devices import resolve_device
    from mertool.errors import MertoolError

    try:
        device = resolve_device(name)
    except MertoolError:
        return ""
    return "" if name == "auto" and device.type == "cpu" else str(device)


def run_part(name: str, options: argparse.Namespace, kept: Path, deadline: float) -> list[dict[str, Any]] | None:
    """Return the rows of a part, kept ones where they are of this code and device; None if it failed."""
    part, file, key = PARTS[name], kept / f"{name}.json", measured_with(options)
    if not options.again and (rows := read_kept(file, key)) is not None:
        say(f"{name}: kept from an earlier run")
        return rows
    seconds = min(60 * part.minutes, deadline - time.monotonic())
    if seconds <= 0:
        say(f"{name}: no time is left")
        return None
    say(f"{name}: at most {seconds / 60:.1f} minutes")
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_suffix(".new")
    written.unlink(missing_ok=True)
    began, status = time.monotonic(), run_command(part.command(options, written), seconds, options.device)
    if status != 0 or not written.exists():
        say(f"{name}: " + (f"stopped after {seconds / 60:.1f} minutes" if status is None else f"failed ({status})"))
        return None
    rows = json.loads(written.read_text(encoding="utf-8"))["rows"]
    content = {"key": key, "seconds": time.monotonic() - began, "rows": rows}
    written.write_text(json.dumps(content, indent=2), encoding="utf-8")
    os.replace(written, file)
    return rows


def run_command(command: list[str], seconds: float, device: str) -> int | None:
    """Run a command with what it starts; return its exit status, None if it took longer and was stopped."""
    environment = {**os.environ, "MERTOOL_TEST_DEVICE": device}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read_kept(file: Path, key: str) -> list[dict[str, Any]] | None:
    """Return the rows of an earlier run with the same key; None if there are none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content["rows"] if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measured_with(options: argparse.Namespace) -> str:
    """Return a digest of what figures depend on: the code, the device, the versions, and whether models are tiny."""
    import torch

    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else options.device
    digest = hashlib.sha256(json.dumps([name, options.tiny, versions()]).encode())
    for file in sorted([*(ROOT / "mertool").rglob("*.py"), *BENCH.glob("*.py"), *(ROOT / "tests").rglob("test_*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def run_tests(options: argparse.Namespace) -> list[Row]:
    """Run the tests marked `gpu`, for a rehearsal a few of them; return how many passed, failed and were skipped."""
    report = options.output.with_suffix(".xml")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--junitxml", str(report)]
    command += ["tests/emulated", "tests/test_gpu.py", "-k", "text or pinned"] if options.tiny else ["tests"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "MERTOOL_TEST_DEVICE": options.device}, check=False)
    return count_tests(report)


def count_tests(report: Path) -> list[Row]:
    """Return rows of the outcomes that a JUnit report holds; `tests/failed` and `tests/errors` name the tests."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))

    def named(tag: str) -> list[str]:
        return [f"{case.get('classname')}::{case.get('name')}" for case in cases if case.find(tag) is not None]

    outcomes = {"failed": named("failure"), "errors": named("error"), "skipped": named("skipped")}
    passed = len(cases) - sum(map(len, outcomes.values()))
    rows = [Row("tests/passed", passed, "tests")]
    return rows + [
        Row(f"tests/{kind}", len(names), "tests", fields={"tests": names}) for kind, names in outcomes.items()
    ]


def to_row(content: dict[str, Any]) -> Row:
    """Return a row of a part, with its goal."""
    fields = {
        name: value for name, value in content.items() if name not in ("name", "value", "unit", "baseline", "ratio")
    }
    if goal := GOALS.get(content["name"]):
        fields |= {"goal": goal, "reached": content["ratio"] >= goal}
    return Row(content["name"], content["value"], content["unit"], content["baseline"], fields)


if __name__ == "__main__":
    sys.exit(main())

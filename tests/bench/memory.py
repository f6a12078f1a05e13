"""Peak memory of `mertool extract` for few and for many clips.

    python tests/bench/memory.py
    python tests/bench/memory.py --audio 100 1000 --faces

Runs `extract audio` (a tiny encoder of random weights) and `extract faces` on stand-in clips, hard links to a few
short files, and samples the resident memory of the command and of its whole process tree every 0.1 s. The tree
counts a page that processes share once for each. Prints a table; everything is in build/bench/memory.json. The
baseline of a row is the same command on the smallest number of clips.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from report import ROOT, Row, publish, say, workplace

RESULT = ROOT / "build" / "bench" / "memory.json"
INTERVAL = 0.1  # seconds
SOURCES, SECONDS = 6, 0.5  # files that the stand-ins link to, and how long they are
MEGABYTE = 1e6


@dataclass(frozen=True)
class Peak:
    """Largest resident memory (MB) of the command's own process and of its tree, and the seconds it ran."""

    own: float
    tree: float
    seconds: float
    processes: int


def main() -> None:
    options = parse()
    rows: list[Row] = []
    with workplace() as folder:
        if options.audio:
            rows += measure(
                "audio", sorted(options.audio), folder=folder, arguments=["--encoder", str(make_encoder(folder))]
            )
        if options.faces:
            rows += measure("faces", sorted(options.faces), folder=folder, arguments=[])
    publish(rows, options.output, "peak memory of mertool extract")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Peak memory of `mertool extract` for few and for many clips.")
    parser.add_argument("--audio", type=int, nargs="*", default=[1000, 10000], metavar="CLIPS", help="1000 10000")
    parser.add_argument("--faces", type=int, nargs="*", default=[1000, 3000], metavar="CLIPS", help="1000 3000")
    parser.add_argument("--tiny", action="store_true", help="20 and 60 clips of each: a smoke test")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    options = parser.parse_args()
    if options.tiny:
        options.audio = options.faces = [20, 60]
    if not options.audio and not options.faces:
        parser.error("give numbers of clips for --audio, --faces or both")
    return options


def measure(modality: str, counts: list[int], *, folder: Path, arguments: list[str]) -> list[Row]:
    """Two rows (the command's process, its tree) for each number of clips."""
    sources = make_sources(modality, folder / f"{modality}-sources")
    rows: list[Row] = []
    least: Peak | None = None
    for count in counts:
        manifest = link_clips(sources, folder / f"{modality}-{count}", count)
        store = folder / f"{modality}-{count}.h5"
        command = ["extract", modality, str(manifest), "-o", str(store), "--device", "cpu", "--json", "-q"]
        peak = watch([sys.executable, "-m", "mertool", *command, *arguments], count)
        store.unlink()
        say(f"memory/{modality}-{count}: {peak.own:.0f} MB, tree {peak.tree:.0f} MB, {peak.seconds:.0f} s")
        least = least or peak
        name, fields = f"memory/{modality}-{count}", {"seconds": peak.seconds, "processes": peak.processes}
        rows.append(Row(name, peak.own, "MB", least.own, fields))
        rows.append(Row(f"{name}-tree", peak.tree, "MB", least.tree, fields))
    return rows


def make_encoder(folder: Path) -> Path:
    """The tiny HuBERT of the demo."""
    from models import demo

    return demo().make_encoders(folder / "encoders")["tiny-random-hubert"]


def make_sources(modality: str, folder: Path) -> list[Path]:
    """Make a few short files with audio, or with a face."""
    from inputs import make_sounds, write_clips

    if modality == "audio":
        return make_sounds(folder, SOURCES, SECONDS)
    return write_clips(folder, np.full(SOURCES, SECONDS), np.random.default_rng(0))


def link_clips(sources: list[Path], folder: Path, count: int) -> Path:
    """A manifest of `count` clips that are links to the sources."""
    folder.mkdir()
    manifest = folder / "clips.csv"
    with open(manifest, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "path"])
        for number in range(count):
            source = sources[number % len(sources)]
            clip = folder / f"clip{number:06d}{source.suffix}"
            os.link(source, clip)
            writer.writerow([clip.stem, clip.name])
    return manifest


def watch(command: list[str], clips: int) -> Peak:
    """Run a command that extracts so many clips, and sample its memory."""
    began = time.perf_counter()
    own = tree = 0.0
    processes = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}) as run:
        root = psutil.Process(run.pid)
        while run.poll() is None:
            sizes = resident(root)
            own, tree = max(own, sizes[0]), max(tree, sum(sizes))
            processes = max(processes, len(sizes))
            time.sleep(INTERVAL)
        seconds, output = time.perf_counter() - began, run.communicate()[0]
    if run.returncode != 0 or json.loads(output)["extracted"] != clips:
        raise SystemExit(f"`{' '.join(command[2:])}` did not extract {clips} clips (exit status {run.returncode})")
    return Peak(own / MEGABYTE, tree / MEGABYTE, seconds, processes)


def resident(root: psutil.Process) -> list[float]:
    """Bytes of a process and, after it, of those it started, of which any may end at any time."""
    sizes = [0.0]
    try:
        sizes = [float(root.memory_info().rss)]
        for child in root.children(recursive=True):
            try:
                sizes.append(float(child.memory_info().rss))
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return sizes


if __name__ == "__main__":
    main()

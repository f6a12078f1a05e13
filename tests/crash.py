"""Extractions that are killed, interrupted or run out of disk: nothing finished is lost, and no value changes.

    .venv/bin/python tests/crash.py --kills 100 --seed 0

Rounds of `mertool extract audio` and `extract faces`: a run is disturbed at a random moment and started again by the
same command until it ends; then the next round begins with another store. `Round.disturb` lists what must be true
after every disturbance; in the end a store equals that of an undisturbed run in every value, id and failure. Parts
have three clips, so that there are many. A full disk is a small tmpfs that another process fills, or a limit on the
size of files where a tmpfs cannot be mounted.
"""

import argparse
import importlib.util
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import psutil
from test_kill import Warm, all_clips, content, manifest_of, parts_of

from mertool.store import FeatureStore, parts_folder, validate_store

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
FAULTY = ("spk04_011", "spk01_014", "spk05_001")  # without audio, without a face, broken
DISK_BYTES = 256 << 20  # of the small disk
LIMIT_SECONDS = 90  # a run must end within these after SIGTERM, SIGINT or a full disk
# Of 100 disturbances: the kind, and the event they wait for. The merge is too short to be met often by chance.
KINDS = {"kill": 66, "full disk": 20, "SIGTERM": 7, "SIGINT": 7}
EVENTS = {"any moment": 50, "a part": 20, "the merge": 30}
SIGNALS = {"kill": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
CODES = {"kill": -signal.SIGKILL, "SIGTERM": 143, "SIGINT": 130, "full disk": 1}


class ViolationError(Exception):
    """A condition that must always be true is not."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A command to disturb.

    arguments: without the output. undisturbed: the content of the store of an undisturbed run, which took `seconds`.
    first_clips: a store of the first clips.
    """

    name: str
    arguments: list[str]
    undisturbed: dict[str, object]
    first_clips: Path
    seconds: float


@dataclass
class Tally:
    """Counts of disturbances, and of runs that resumed after them, by kind of disturbance and phase of the run."""

    disturbances: Counter[tuple[str, str]] = field(default_factory=Counter)
    resumed: Counter[tuple[str, str]] = field(default_factory=Counter)
    too_late: int = 0  # the run had ended before
    noisy: int = 0  # a helper process, stopped while it was starting, printed a traceback
    rounds: int = 0

    @property
    def total(self) -> int:
        return sum(self.disturbances.values())


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small file system at `folder`, and yield whether that was possible."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = sys.platform == "linux" and subprocess.run(["mount", *options], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_tasks(warm: Warm, work: Path, clips: dict[str, int]) -> list[Task]:
    """Return commands over so many clips of the demo per modality, including faulty ones."""
    spec = importlib.util.spec_from_file_location("make_encoders", DEMO / "make_encoders.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hubert = module.make_encoders(work / "encoders")["tiny-random-hubert"]
    options = {"audio": ["--encoder", str(hubert)], "faces": ["--fps", "1"]}
    tasks = []
    for modality, count in clips.items():
        folder = work / modality
        chosen = list(dict.fromkeys(["spk01_001", *FAULTY, *all_clips(DEMO)]))[:count]
        full, first = manifest_of(folder, DEMO, chosen), manifest_of(folder, DEMO, chosen[: count // 4])
        arguments = [
            "extract",
            modality,
            str(full),
            *options[modality],
            "--max-failed",
            "1",
            "--workers",
            "1",
            "--quiet",
        ]
        seconds = warm.done(*arguments, "-o", folder / "undisturbed.h5")
        warm.done("extract", modality, first, *arguments[3:], "-o", folder / "first.h5")
        tasks.append(
            Task(
                name=modality,
                arguments=arguments,
                undisturbed=content(folder / "undisturbed.h5"),
                first_clips=folder / "first.h5",
                seconds=seconds,
            )
        )
    return tasks


def clips_done(path: Path) -> set[str]:
    """Return the clips with features or a reason; a store or a part that is not valid is a violation."""
    done: set[str] = set()
    if path.exists():
        if faults := validate_store(path):
            raise ViolationError(f"{path} is faulty: {faults}")
        with FeatureStore(path) as store:
            done |= {*store.ids, *(failure.clip for failure in store.failures())}
    for part in parts_of(path):
        try:
            with h5py.File(part) as file:
                ids = [clip.decode() for clip in file["clips/id"][:]]
                if len(ids) and len(file["values"]) < len(ids):
                    raise ViolationError(f"{part} holds too few values")
                done |= {*ids, *(row[0].decode() for row in file["failures"][:])}
        except (OSError, KeyError) as error:
            raise ViolationError(f"{part} is torn: {error}") from error
    return done


class Round:
    """One store, from its first run to the last."""

    def __init__(self, *, warm: Warm, task: Task, folder: Path, disk: bool, rng: random.Random, begun: bool):
        self.warm, self.task, self.disk, self.rng = warm, task, disk, rng
        self.path = folder / "store.h5"
        self.command = [*task.arguments, "-o", str(self.path)]
        shutil.rmtree(parts_folder(self.path), ignore_errors=True)
        self.path.unlink(missing_ok=True)
        if begun:
            shutil.copy(task.first_clips, self.path)
        self.done, self.noisy = clips_done(self.path), False
        self.leftovers: set[Path] = set()

    def disturb(self, kind: str, when: str) -> str | None:
        """Start the command and disturb it; return the phase it was in, None if it had ended by then.

        It must end in time, with the exit code of that disturbance and leaving no process behind; the store must be
        absent or valid, every part complete, and no finished clip lost.
        """
        inode, self.leftovers = self._inode(), self._temporaries()
        begun = time.monotonic()
        group = self.warm.start(*self.command)
        await_handlers(group)
        self._await(when, begun)
        phase = self._phase(inode)
        over = self.warm.over.exists()
        code = self._strike(kind, group)
        log = self.warm.log.read_text(errors="replace")
        if code not in (0, CODES[kind]):
            raise ViolationError(f"{kind} while {phase}: exit code {code}, not {CODES[kind]}; its log: {log[-1500:]}")
        if code and kind == "full disk" and "the disk is full" not in log:
            raise ViolationError(f"{kind} while {phase}: its log: {log!r}")
        if orphans := processes_of(group):
            raise ViolationError(f"{kind} while {phase}: processes are left behind: {orphans}")
        done = clips_done(self.path)
        if lost := self.done - done:
            raise ViolationError(f"{kind} while {phase}: {len(lost)} finished clips are lost: {sorted(lost)[:9]}")
        self.done, self.noisy = done, "Traceback" in log
        return None if over or code == 0 else phase

    def finish(self) -> None:
        """Let the command end, and compare."""
        self.warm.start(*self.command)
        code, log = self._wait(), self.warm.log.read_text(errors="replace")
        if code != 0:
            raise ViolationError(f"undisturbed at last, but exit code {code}: {log[-1500:]}")
        clips_done(self.path)
        tables = content(self.path)
        if wrong := [name for name in self.task.undisturbed if tables.get(name) != self.task.undisturbed[name]]:
            raise ViolationError(f"{self.path} differs from an undisturbed run in {', '.join(wrong)}")
        if leftovers := [path.name for path in self.path.parent.iterdir() if path != self.path]:
            raise ViolationError(f"files are left behind: {leftovers}")

    def _await(self, when: str, begun: float) -> None:
        """Wait for the moment of the disturbance, or until the run is over."""
        share = 1 - len(self.done) / len(self.task.undisturbed["failures"] + self.task.undisturbed["clips/id"][1])
        pause = self.rng.uniform(0.02, 0.3 + self.task.seconds * share)
        if when != "any moment":
            pause = self.rng.uniform(0, 0.02)
            known = set(parts_of(self.path))
            while not self.warm.over.exists() and time.monotonic() - begun < LIMIT_SECONDS:
                if self._merging() or (when == "a part" and set(parts_of(self.path)) - known):
                    break
                time.sleep(0.0005)
            begun = time.monotonic()
        while time.monotonic() - begun < pause and not self.warm.over.exists():
            time.sleep(0.001)

    def _strike(self, kind: str, group: int) -> int:
        """Disturb the run and return its exit code."""
        if kind != "full disk":
            with suppress(ProcessLookupError):
                os.killpg(group, SIGNALS[kind])
            return self._wait()
        if not self.disk:
            with suppress(ProcessLookupError):
                resource.prlimit(group, resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return self._wait()
        filler = self.path.with_name("filler")
        try:
            with suppress(OSError), open(filler, "wb", buffering=0) as file:
                for size in (1 << 20, 1 << 12):
                    with suppress(OSError):
                        while file.write(bytes(size)) == size:
                            pass
            return self._wait()
        finally:
            filler.unlink()

    def _wait(self) -> int:
        """Return the exit code when the run has ended by itself."""
        end = time.monotonic() + LIMIT_SECONDS
        while not self.warm.over.exists():
            if time.monotonic() > end:
                raise ViolationError(f"not over after {LIMIT_SECONDS} s")
            time.sleep(0.002)
        return self.warm.wait()

    def _temporaries(self) -> set[Path]:
        parts = parts_folder(self.path)
        return {*self.path.parent.glob(f".{self.path.name}.tmp-*"), *parts.glob(".part-*.tmp-*")}

    def _merging(self) -> bool:
        return any(path.parent == self.path.parent for path in self._temporaries() - self.leftovers)

    def _inode(self) -> int:
        return self.path.stat().st_ino if self.path.exists() else 0

    def _phase(self, inode: int) -> str:
        if self._merging():
            return "merging"
        if self._inode() != inode:
            return "tidying up"
        if self._temporaries() - self.leftovers:
            return "writing a part"
        return "between parts" if parts_of(self.path) else "before any part"


def await_handlers(pid: int) -> None:
    """Wait until the command has set its signal handlers: before, the interpreter ends it in its own way."""
    status, term = Path(f"/proc/{pid}/status"), 1 << (signal.SIGTERM - 1)
    with suppress(OSError, StopIteration):
        while not term & int(next(w for w in status.read_text().splitlines() if w.startswith("SigCgt")).split()[1], 16):
            time.sleep(0.001)


def processes_of(group: int, patience: float = 5) -> list[str]:
    """Return command lines of processes of a group that still run a while after its leader ended."""
    end = time.monotonic() + patience
    while True:
        running = []
        for process in psutil.process_iter(["status"]):
            with suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                    running.append(" ".join(process.cmdline())[:200])
        if not running or time.monotonic() > end:
            return running
        time.sleep(0.05)


def draw(rng: random.Random, kills: int) -> list[str]:
    """Return kinds of disturbance by their shares, in random order."""
    drawn = [kind for kind, share in KINDS.items() for _ in range(round(kills * share / 100))]
    drawn = [*drawn, *["kill"] * kills][:kills]
    rng.shuffle(drawn)
    return drawn


def crash(work: Path, *, kills: int, seed: int, clips: dict[str, int]) -> Tally:
    """Disturb `kills` runs below `work`; raise ViolationError at the first violation."""
    rng, tally = random.Random(seed), Tally()
    kinds = draw(rng, kills)
    warm = Warm(work)
    try:
        tasks = make_tasks(warm, work, clips)
        with small_disk(work / "disk") as disk:
            while tally.total < kills:
                task = tasks[tally.rounds % len(tasks)]
                round_ = Round(
                    warm=warm, task=task, folder=work / "disk", disk=disk, rng=rng, begun=tally.rounds % 4 >= 2
                )
                tally.rounds += 1
                disturb_until_over(round_, kinds, rng=rng, tally=tally)
    finally:
        with suppress(ProcessLookupError):
            warm.process.stdin.close()
            warm.process.wait(timeout=30)
    return tally


def disturb_until_over(round_: Round, kinds: list[str], *, rng: random.Random, tally: Tally) -> None:
    last = None
    while tally.total < len(kinds):
        kind = kinds[tally.total]
        phase = round_.disturb(kind, rng.choices([*EVENTS], [*EVENTS.values()])[0])
        tally.noisy += round_.noisy
        if last:
            tally.resumed[last] += 1
        if phase is None:
            tally.too_late += 1
            last = None
            break
        last = (kind, phase)
        tally.disturbances[last] += 1
        if tally.total % 10 == 0:
            print(f"{tally.total} of {len(kinds)} disturbances", file=sys.stderr)
    round_.finish()
    if last:
        tally.resumed[last] += 1


def table(tally: Tally) -> Iterator[str]:
    phases = ["before any part", "between parts", "writing a part", "merging", "tidying up"]
    yield f"{'disturbed: resumed fine':24}" + "".join(f"{phase:>17}" for phase in phases) + f"{'all':>12}"
    for kind in KINDS:
        cells = [(tally.disturbances[kind, phase], tally.resumed[kind, phase]) for phase in phases]
        cells.append((sum(n for n, _ in cells), sum(n for _, n in cells)))
        yield f"{kind:24}" + "".join(
            f"{f'{n}: {fine}' if n else '.':>{17 if at < len(phases) else 12}}" for at, (n, fine) in enumerate(cells)
        )
    yield (
        f"{tally.total} disturbances in {tally.rounds} rounds ({tally.too_late} more came after the end of a run), "
        f"{sum(tally.resumed.values())} resumed fine, {tally.noisy} with a traceback of a helper process"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="disturbances")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mertool-crash-"))
    began = time.monotonic()
    try:
        tally = crash(work, kills=options.kills, seed=options.seed, clips={"audio": 48, "faces": 15})
    except ViolationError as error:
        sys.exit(f"violated: {error}\nfiles are kept in {work}, except those on the small disk")
    print("\n".join([*table(tally), f"{time.monotonic() - began:.0f} s"]))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()

"""Extractions disturbed a hundred times: killed, interrupted, out of disk; nothing finished is lost, no value changes.

    .venv/bin/python tests/crash.py --kills 100 --seed 0

Rounds of `mertool extract audio` and `extract faces`: a run is disturbed at a random moment and started again by the
same command, until it is through; then the next round begins with another store. What must hold after every single
disturbance is in `Round.disturb`, and in the end a store equals that of an undisturbed run in every value, id and
failure. Parts are of three clips, so that there are many. A full disk is a small tmpfs that somebody else fills up;
without the right to mount one, a limit on the size of files.
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

from mertool.errors import MertoolError
from mertool.store import FeatureStore, parts_folder

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
FAULTY = ("spk04_011", "spk01_014", "spk05_001")  # without sound, without a face, broken
ROOM = 256 << 20  # bytes of the disk that can be filled up
LIMIT = 90  # seconds in which a run must end after SIGTERM, SIGINT or a full disk
# Of 100 disturbances: how, and what it is that they wait for. The merge is short: chance alone would hardly meet it.
HOW = {"kill": 66, "full disk": 20, "SIGTERM": 7, "SIGINT": 7}
WHEN = {"any moment": 50, "a part": 20, "the merge": 30}
SIGNALS = {"kill": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
CODES = {"kill": -signal.SIGKILL, "SIGTERM": 143, "SIGINT": 130, "full disk": 1}


class ViolationError(Exception):
    """Something that must hold does not."""


@dataclass(frozen=True)
class Task:
    """A command without its output, the store of an undisturbed run, one of the first clips, the seconds it took."""

    name: str
    arguments: list[str]
    calm: dict[str, object]
    known: Path
    seconds: float


@dataclass
class Tally:
    """What was done: disturbances by kind and by the phase they met, and how the next run went on."""

    disturbances: Counter[tuple[str, str]] = field(default_factory=Counter)
    resumed: Counter[tuple[str, str]] = field(default_factory=Counter)
    too_late: int = 0  # the run was over
    noisy: int = 0  # a helper process, stopped while it was starting, printed a traceback
    rounds: int = 0

    @property
    def total(self) -> int:
        return sum(self.disturbances.values())


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of its own at `folder`, if that can be had; whether it could."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    mounted = sys.platform == "linux" and subprocess.run(["mount", *options], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_tasks(warm: Warm, work: Path, clips: dict[str, int]) -> list[Task]:
    """Commands over the demo's clips, as many as are named; what is wrong with some of them comes along."""
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
        given = ["extract", modality, str(full), *options[modality], "--max-failed", "1", "--workers", "1", "--quiet"]
        seconds = warm.done(*given, "-o", folder / "calm.h5")
        warm.done("extract", modality, first, *given[3:], "-o", folder / "known.h5")
        tasks.append(Task(modality, given, content(folder / "calm.h5"), folder / "known.h5", seconds))
    return tasks


def clips_done(path: Path) -> set[str]:
    """Clips with features or a reason, in a sound store and in whole parts; anything else is a violation."""
    done: set[str] = set()
    if path.exists():
        try:
            with FeatureStore(path) as store:
                if faults := store.validate():
                    raise ViolationError(f"{path} is faulty: {faults}")
                done |= {*store.ids, *(failure.clip for failure in store.failures())}
        except MertoolError as error:
            raise ViolationError(f"{path} is torn: {error}") from error
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

    def __init__(self, warm: Warm, task: Task, folder: Path, disk: bool, rng: random.Random, begun: bool):
        self.warm, self.task, self.disk, self.rng = warm, task, disk, rng
        self.path = folder / "store.h5"
        self.command = [*task.arguments, "-o", str(self.path)]
        shutil.rmtree(parts_folder(self.path), ignore_errors=True)
        self.path.unlink(missing_ok=True)
        if begun:
            shutil.copy(task.known, self.path)
        self.done, self.noisy = clips_done(self.path), False
        self.leftovers: set[Path] = set()

    def disturb(self, how: str, when: str) -> str | None:
        """Start the command and disturb it; the phase it was met in, None if it was over by then.

        What must hold: it ends in time, with the exit code of that disturbance and leaving no process behind; the
        store is absent or sound, every part is whole, no clip that was done is lost.
        """
        inode, self.leftovers = self._inode(), self._temporaries()
        begun = time.monotonic()
        group = self.warm.start(*self.command)
        await_handlers(group)
        self._await(when, begun)
        phase = self._phase(inode)
        over = self.warm.over.exists()
        code = self._strike(how, group)
        log = self.warm.log.read_text(errors="replace")
        if code not in (0, CODES[how]):
            raise ViolationError(f"{how} while {phase}: exit code {code}, not {CODES[how]}; it said: {log[-1500:]}")
        if code and how == "full disk" and "the disk is full" not in log:
            raise ViolationError(f"{how} while {phase}: it said {log!r}")
        if left := processes_of(group):
            raise ViolationError(f"{how} while {phase}: processes are left behind: {left}")
        done = clips_done(self.path)
        if lost := self.done - done:
            raise ViolationError(f"{how} while {phase}: {len(lost)} finished clips are lost: {sorted(lost)[:9]}")
        self.done, self.noisy = done, "Traceback" in log
        return None if over or code == 0 else phase

    def finish(self) -> None:
        """Let the command end, and compare."""
        self.warm.start(*self.command)
        code, log = self._wait(), self.warm.log.read_text(errors="replace")
        if code != 0:
            raise ViolationError(f"undisturbed at last, but exit code {code}: {log[-1500:]}")
        clips_done(self.path)
        found = content(self.path)
        if wrong := [name for name in self.task.calm if found.get(name) != self.task.calm[name]]:
            raise ViolationError(f"{self.path} differs from an undisturbed run in {', '.join(wrong)}")
        if left := [p.name for p in self.path.parent.iterdir() if p != self.path]:
            raise ViolationError(f"files are left behind: {left}")

    def _await(self, when: str, begun: float) -> None:
        """Wait for the moment of the disturbance, or until the run is over."""
        share = 1 - len(self.done) / len(self.task.calm["failures"] + self.task.calm["clips/id"][1])
        pause = self.rng.uniform(0.02, 0.3 + self.task.seconds * share)
        if when != "any moment":
            pause = self.rng.uniform(0, 0.02)
            known = set(parts_of(self.path))
            while not self.warm.over.exists() and time.monotonic() - begun < LIMIT:
                if self._merging() or (when == "a part" and set(parts_of(self.path)) - known):
                    break
                time.sleep(0.0005)
            begun = time.monotonic()
        while time.monotonic() - begun < pause and not self.warm.over.exists():
            time.sleep(0.001)

    def _strike(self, how: str, group: int) -> int:
        """Disturb; the exit code."""
        if how != "full disk":
            with suppress(ProcessLookupError):
                os.killpg(group, SIGNALS[how])
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
        """The exit code, once the run is over by itself."""
        end = time.monotonic() + LIMIT
        while not self.warm.over.exists():
            if time.monotonic() > end:
                raise ViolationError(f"not over after {LIMIT} s")
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
    """Wait until the command has set its handlers: what the interpreter does with a signal before is its own."""
    status, term = Path(f"/proc/{pid}/status"), 1 << (signal.SIGTERM - 1)
    with suppress(OSError, StopIteration):
        while not term & int(next(w for w in status.read_text().splitlines() if w.startswith("SigCgt")).split()[1], 16):
            time.sleep(0.001)


def processes_of(group: int, patience: float = 5) -> list[str]:
    """Command lines of what still runs in a process group a while after its leader ended."""
    end = time.monotonic() + patience
    while True:
        left = []
        for process in psutil.process_iter(["status"]):
            with suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                    left.append(" ".join(process.cmdline())[:200])
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)


def draw(rng: random.Random, kills: int) -> list[str]:
    """Kinds of disturbance by their shares, in random order."""
    drawn = [how for how, share in HOW.items() for _ in range(round(kills * share / 100))]
    drawn = [*drawn, *["kill"] * kills][:kills]
    rng.shuffle(drawn)
    return drawn


def crash(work: Path, kills: int, seed: int, clips: dict[str, int]) -> Tally:
    """Disturb `kills` runs below `work`; raises ViolationError at the first thing that does not hold."""
    rng, tally = random.Random(seed), Tally()
    how = draw(rng, kills)
    warm = Warm(work)
    try:
        tasks = make_tasks(warm, work, clips)
        with small_disk(work / "disk") as disk:
            while tally.total < kills:
                task = tasks[tally.rounds % len(tasks)]
                round_ = Round(warm, task, work / "disk", disk, rng, begun=tally.rounds % 4 >= 2)
                tally.rounds += 1
                disturb_until_over(round_, how, rng, tally)
    finally:
        with suppress(ProcessLookupError):
            warm.process.stdin.close()
            warm.process.wait(timeout=30)
    return tally


def disturb_until_over(round_: Round, how: list[str], rng: random.Random, tally: Tally) -> None:
    last = None
    while tally.total < len(how):
        kind = how[tally.total]
        phase = round_.disturb(kind, rng.choices([*WHEN], [*WHEN.values()])[0])
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
            print(f"{tally.total} of {len(how)} disturbances", file=sys.stderr)
    round_.finish()
    if last:
        tally.resumed[last] += 1


def table(tally: Tally) -> Iterator[str]:
    phases = ["before any part", "between parts", "writing a part", "merging", "tidying up"]
    yield f"{'disturbed: resumed fine':24}" + "".join(f"{phase:>17}" for phase in phases) + f"{'all':>12}"
    for kind in HOW:
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
        tally = crash(work, options.kills, options.seed, {"audio": 48, "faces": 15})
    except ViolationError as error:
        sys.exit(f"violated: {error}\nwhat was made is in {work}, but for what lay on its disk")
    print("\n".join([*table(tally), f"{time.monotonic() - began:.0f} s"]))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()

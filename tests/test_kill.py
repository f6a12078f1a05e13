"""Killing at random moments: a store is never torn, nothing finished is lost, resuming gives the same values.

The commands run in forks of one warm process, because importing torch takes longer than the work. Each fork
leads a process group of its own, and all of that group is killed, decoders included.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from mertool.features import Recipe
from mertool.files import write_atomic
from mertool.store import ClipFeatures, FeatureStore, StoreWriter, parts_folder, writer

SERVER = """
import json, os, sys, traceback
sys.path.insert(0, sys.argv[1])
import mertool.extract, mertool.faces, mertool.encoders.speech, mertool.encoders.vision
import mertool.extraction.pipeline, peft, pydantic, pydantic.fields, test_kill
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, CLIPImageProcessor, CLIPVisionModel
from transformers import HubertModel, Wav2Vec2FeatureExtractor
from mertool.cli import console, main
from mertool.store import writer

console.LINE_EVERY = 0  # a line of progress per clip
print("ready", flush=True)
for line in sys.stdin:
    log, part_clips, *arguments = json.loads(line)
    if os.fork() == 0:
        os.setsid()
        print(os.getpid(), flush=True)
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        writer.PART_CLIPS = part_clips
        code = 70
        try:
            sys.argv = ["mertool", *arguments]
            test_kill.write_clips(*arguments[1:]) if arguments[0] == "write-clips" else main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.wait()
    open(log + ".over", "w").close()
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
CLIPS = [f"clip{number:03d}" for number in range(90)]
FRAMES = Recipe("video", "tiny", "w0", (4,), "none", storage_dtype="float32")


def write_clips(path: str) -> None:
    """What a run of `extract` does to its store, without decoding and encoding."""
    with StoreWriter(Path(path), FRAMES, {}) as out:
        for number, clip in enumerate(CLIPS):
            if clip not in out.done:
                rng = np.random.default_rng(number)
                out.add(ClipFeatures(clip, "d", rng.normal(size=(5 + number, 64)).astype(np.float32)))
        out.finish(CLIPS)


class Warm:
    """A process with everything imported, that forks one command at a time."""

    def __init__(self, folder: Path):
        self.log, self.over = folder / "log", folder / "log.over"
        here = str(Path(__file__).parent)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, here],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},  # threads fight on a busy machine
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, *arguments: object, part_clips: int = 3) -> int:
        """The process group of a command that has begun."""
        self.over.unlink(missing_ok=True)
        request = [str(self.log), part_clips, *map(str, arguments)]
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        group = int(self.process.stdout.readline())
        assert group > 1  # 0 would be the group of the tests themselves
        return group

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        return int(self.process.stdout.readline())

    def kill(self, group: int) -> int:
        """SIGKILL to all of the group; the exit code of the command, 0 if it was faster."""
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        return self.wait()

    def done(self, *arguments: object) -> float:
        """A command that must succeed; the seconds it took."""
        began = time.monotonic()
        self.start(*arguments)
        assert self.wait() == 0, self.log.read_text()
        return time.monotonic() - began


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    server = Warm(tmp_path_factory.mktemp("warm"))
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=30)


def content(path: Path) -> dict[str, object]:
    """Everything in a store but the order of bytes on the disk."""
    found: dict[str, object] = {}
    with h5py.File(path) as file:
        for name in ("values", "offset", "length", *(f"clips/{column}" for column in file["clips"])):
            if name in file:
                column = file[name][:]
                found[name] = (column.shape, column.tolist() if column.dtype == object else column.tobytes())
        found["failures"] = [[cell.decode() for cell in row] for row in file["failures"][:]]
        found["attributes"] = dict(file.attrs)
    return found


def ids_seen_by_a_reader(path: Path) -> list[str] | None:
    """Ids of a sound store, None where there is none yet; a torn one fails the test."""
    if not path.exists():
        return None
    with FeatureStore(path) as store:
        assert store.faults() == []
        return store.ids


def parts_of(path: Path) -> list[Path]:
    return sorted(parts_folder(path).glob("part-*.h5"))


def check_parts(path: Path) -> int:
    """Every part is whole; their number."""
    parts = parts_of(path)
    for part in parts:
        with h5py.File(part) as file:
            assert len(file["clips/id"]) + len(file["failures"]) > 0
    return len(parts)


def await_part(warm: Warm, path: Path, known: int, limit: float = 30) -> None:
    """Return when one more part is there, or the command is over."""
    end = time.monotonic() + limit
    while len(parts_of(path)) <= known and not warm.over.exists() and time.monotonic() < end:
        time.sleep(0.002)


def kill_until_done(warm: Warm, path: Path, arguments: list, kills: int, seed: int, longest: float) -> tuple[int, set]:
    """Start the command and kill it, `kills` times; then let it end. Kills in mid-run, and what readers saw.

    Every second kill comes shortly after a part was written, the others at any moment of a run, which takes
    `longest` seconds if nothing disturbs it.
    """
    rng = np.random.default_rng(seed)
    landed, seen = 0, set()
    for number in range(kills):
        known, pause = len(parts_of(path)), rng.uniform(0, longest)
        group = warm.start(*arguments)
        if number % 2 == 0:
            await_part(warm, path, known)
            pause = min(pause, 0.1) / 2
        end = time.monotonic() + pause
        while time.monotonic() < end and not warm.over.exists():
            seen.add(tuple(ids_seen_by_a_reader(path) or ()))
            time.sleep(0.01)
        code = warm.kill(group)
        assert code in (0, -signal.SIGKILL), warm.log.read_text()
        landed += code != 0 and check_parts(path) > 0
        seen.add(tuple(ids_seen_by_a_reader(path) or ()))
        if code == 0:
            break
    warm.done(*arguments)
    seen.add(tuple(ids_seen_by_a_reader(path) or ()))
    return landed, seen


def test_killed_writing_and_merging(warm, tmp_path):
    longest = warm.done("write-clips", tmp_path / "calm.h5")
    calm = content(tmp_path / "calm.h5")
    total = 0
    for seed in range(4):
        path = tmp_path / "killed.h5"
        path.unlink(missing_ok=True)
        landed, seen = kill_until_done(warm, path, ["write-clips", path], kills=8, seed=seed, longest=longest)
        total += landed
        assert seen == {(), tuple(CLIPS)}
        assert content(path) == calm
        assert sorted(p.name for p in tmp_path.iterdir()) == ["calm.h5", "killed.h5"]
    assert total >= 5


def test_leftovers_of_killed_writes_are_not_read_and_go(warm, tmp_path):
    path = tmp_path / "store.h5"
    group = warm.start("write-clips", path)
    await_part(warm, path, 5)
    warm.kill(group)
    assert check_parts(path) > 0
    (parts_folder(path) / ".part-99999999999999999999-late.h5.tmp-1").write_bytes(b"half a part")
    (tmp_path / ".store.h5.tmp-12345").write_bytes(b"half a merge")
    warm.done("write-clips", path)
    warm.done("write-clips", tmp_path / "calm.h5")
    assert content(path) == content(tmp_path / "calm.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calm.h5", "store.h5"]


def manifest_of(folder: Path, demo: Path, clips: list[str]) -> Path:
    lines = (demo / "manifest.csv").read_text(encoding="utf-8").splitlines()
    rows = {line.split(",")[0]: line for line in lines[1:]}
    chosen = [rows[clip].replace(",clips/", f",{demo}/clips/").replace(",test/", f",{demo}/test/") for clip in clips]
    write_atomic(folder / f"{len(clips)}.csv", "\n".join([lines[0], *chosen]) + "\n")
    return folder / f"{len(clips)}.csv"


def all_clips(demo: Path) -> list[str]:
    lines = (demo / "manifest.csv").read_text(encoding="utf-8").splitlines()[1:]
    return [line.split(",")[0] for line in lines]


def test_extract_audio_killed(warm, tmp_path, demo, tiny_encoders):
    clips = [*all_clips(demo)[:30], "spk04_011", "spk05_001"]
    known, full = manifest_of(tmp_path, demo, clips[:8]), manifest_of(tmp_path, demo, clips)
    options = ["--encoder", tiny_encoders["hubert"], "--max-failed", 1, "--workers", 1]
    longest = warm.done("extract", "audio", full, "-o", tmp_path / "calm.h5", *options)
    path = tmp_path / "killed.h5"
    warm.done("extract", "audio", known, "-o", path, *options)
    before = ids_seen_by_a_reader(path)
    arguments = ["extract", "audio", full, "-o", path, *options]
    landed, seen = kill_until_done(warm, path, arguments, kills=3, seed=0, longest=longest)
    assert landed >= 1
    assert seen <= {tuple(before), tuple(ids_seen_by_a_reader(path))}
    calm, killed = content(tmp_path / "calm.h5"), content(path)
    assert {row[3] for row in calm["failures"]} == {"no_audio", "unreadable"}
    assert killed == calm


def test_extract_video_frames_killed(warm, tmp_path, demo, tiny_encoders):
    clips = [*all_clips(demo)[:10], "spk01_014", "spk05_001"]
    source = manifest_of(tmp_path, demo, clips)
    faces = tmp_path / "faces" / "faces.h5"
    warm.done("extract", "faces", source, "-o", faces, "--fps", 2, "--max-failed", 1)
    options = ["--encoder", tiny_encoders["clip"], "--pool", "none", "--faces", faces, "--fps", 2, "--max-failed", 1]
    longest = warm.done("extract", "video", source, "-o", tmp_path / "calm.h5", *options)
    path = tmp_path / "killed.h5"
    arguments = ["extract", "video", source, "-o", path, *options]
    landed, seen = kill_until_done(warm, path, arguments, kills=2, seed=2, longest=longest)
    assert landed >= 1
    assert seen <= {(), tuple(ids_seen_by_a_reader(path))}
    calm, killed = content(tmp_path / "calm.h5"), content(path)
    assert {row[3] for row in calm["failures"]} == {"no_face", "unreadable"}
    assert killed == calm


def test_predict_killed(warm, tmp_path, demo, tiny_encoders, make_bundle):
    clips = [*all_clips(demo)[:8], "spk01_014", "spk05_001"]
    few, full = manifest_of(tmp_path, demo, clips[:2]), manifest_of(tmp_path, demo, clips)
    warm.done("extract", "audio", few, "-o", tmp_path / "audio.h5", "--encoder", tiny_encoders["hubert"])
    options = ["--encoder", tiny_encoders["clip"], "--pool", "none", "--fps", 1, "--no-keep-faces"]
    warm.done("extract", "video", few, "-o", tmp_path / "frames.h5", *options)
    bundle = make_bundle(tmp_path / "run", [tmp_path / "audio.h5", tmp_path / "frames.h5"])
    options = ["--max-failed", 1, "--workers", 1]
    longest = warm.done("predict", bundle, full, "-o", tmp_path / "calm.csv", *options)
    output = tmp_path / "killed.csv"
    path = tmp_path / "killed.csv.features" / "audio.h5"
    landed, seen = kill_until_done(
        warm, path, ["predict", bundle, full, "-o", output, *options], kills=2, seed=3, longest=longest
    )
    assert landed >= 1
    assert seen <= {(), tuple(ids_seen_by_a_reader(path))}
    assert output.read_bytes() == (tmp_path / "calm.csv").read_bytes()
    for name in ("audio.h5", "frames.h5"):
        assert content(path.with_name(name)) == content(tmp_path / "calm.csv.features" / name)


TALKATIVE = """
import sys
from mertool.cli import console, main
from mertool.store import writer

console.LINE_EVERY = 0  # a line of progress per clip
writer.PART_CLIPS = 10**9
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_the_part_at_hand(number, code, tmp_path, demo, tiny_encoders):
    clips = all_clips(demo)
    source, path, log = manifest_of(tmp_path, demo, clips), tmp_path / "audio.h5", tmp_path / "log"
    script = tmp_path / "talkative.py"
    script.write_text(TALKATIVE)
    arguments = ["extract", "audio", source, "-o", path, "--encoder", tiny_encoders["hubert"]]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, script, *map(str, arguments)],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    end = time.monotonic() + 60
    while "extract audio: 5 of" not in log.read_text() and time.monotonic() < end:
        time.sleep(0.005)
    os.killpg(process.pid, number)  # as a terminal does: decoders get it too
    assert process.wait(timeout=60) == code, log.read_text()
    assert "interrupted: run the same command again to go on; finished parts of an extraction" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not path.exists()
    (part,) = parts_of(path)
    with h5py.File(part) as file:
        assert 5 <= len(file["clips/id"]) < len(clips)


def test_part_size_is_what_the_kills_rely_on():
    assert len(CLIPS) < writer.PART_CLIPS

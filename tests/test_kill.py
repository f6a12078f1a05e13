"""Extractions that are killed: a store is never torn, nothing finished is lost, resuming gives the same values.

The commands run in forks of one process that has imported everything, because importing torch takes longer than the
work. Each fork leads a process group of its own, which is killed as a whole, decoders included.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from fixtures.run_files import files_of

from mertool.features import Recipe
from mertool.files import write_atomic
from mertool.media_digest import digest_of_signature
from mertool.store import ClipFeatures, FeatureStore, StoreWriter, parts_folder

SERVER = """
import json, os, signal, sys, traceback
sys.path.insert(0, sys.argv[1])
import mertool.extract, mertool.faces, mertool.encoders.families.wav2vec2, mertool.encoders.families.vision_transformer
import mertool.extraction.pipeline, peft, pydantic, pydantic.fields, test_kill
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, CLIPImageProcessor, CLIPVisionModel
from transformers import HubertModel, Wav2Vec2FeatureExtractor
from mertool.cli import main, progress
from mertool.store import writer

progress.SECONDS_BETWEEN_LINES = 0  # a line of progress per clip
write_part, parts_written = writer.write_atomic, 0

def write_part_and_stop(path, content):
    # Stopped in the middle of the run, so that the kill meets it there.
    global parts_written
    write_part(path, content)
    parts_written += 1
    if parts_written == stop_after_parts:
        os.kill(os.getpid(), signal.SIGSTOP)

writer.write_atomic = write_part_and_stop
print("ready", flush=True)
for line in sys.stdin:
    log, part_clips, stop_after_parts, *arguments = json.loads(line)
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
FRAMES = Recipe(modality="video", encoder="tiny", weights="w0", layers=(4,), pool="none", storage_dtype="float32")


def write_clips(path: str) -> None:
    """Write a store as a run of `extract` does, without decoding and encoding."""
    with StoreWriter(Path(path), FRAMES, {}) as out:
        for number, clip in enumerate(CLIPS):
            if clip not in out.done:
                rng = np.random.default_rng(number)
                out.add(ClipFeatures(clip, "d", rng.normal(size=(5 + number, 64)).astype(np.float32)))
        out.finish(CLIPS)


class Warm:
    """A process that has imported everything, and forks one command at a time."""

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

    def start(self, *arguments: object, part_clips: int = 3, stop_after_parts: int = 0) -> int:
        """Start a command and return its process group; after `stop_after_parts` parts it stops, to be killed."""
        self.over.unlink(missing_ok=True)
        request = [str(self.log), part_clips, stop_after_parts, *map(str, arguments)]
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        group = int(self.process.stdout.readline())
        assert group > 1  # 0 would be the group of the tests themselves
        return group

    def wait(self) -> int:
        """Wait for the command and return its exit code, negative for a signal."""
        return int(self.process.stdout.readline())

    def kill(self, group: int) -> int:
        """Send SIGKILL to the whole group; return the exit code of the command, 0 if it had ended before."""
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        return self.wait()

    def done(self, *arguments: object) -> float:
        """Run a command that must succeed and return the seconds it took."""
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
    """Return everything in a store but the order of bytes on the disk, and the times of the media files."""
    tables: dict[str, object] = {}
    with h5py.File(path) as file:
        for name in ("values", "offset", "length", *(f"clips/{column}" for column in file["clips"])):
            if name in file:
                column = file[name][:]
                tables[name] = (column.shape, column.tolist() if column.dtype == object else column.tobytes())
        tables["clips/digest"] = [digest_of_signature(cell.decode()) for cell in file["clips/digest"][:]]
        tables["failures"] = [[cell.decode() for cell in row] for row in file["failures"][:]]
        for row in tables["failures"]:
            row[1] = digest_of_signature(row[1])
        tables["attributes"] = dict(file.attrs)
    return tables


def ids_for_a_reader(path: Path) -> list[str] | None:
    """Return the ids of a valid store, None if there is no store yet; fail for a torn one."""
    if not path.exists():
        return None
    with FeatureStore(path) as store:
        assert store.validate() == []
        return store.ids


def parts_of(path: Path) -> list[Path]:
    return sorted(parts_folder(path).glob("part-*.h5"))


def check_parts(path: Path) -> int:
    """Check that every part is complete, and return their number."""
    parts = parts_of(path)
    for part in parts:
        with h5py.File(part) as file:
            assert len(file["clips/id"]) + len(file["failures"]) > 0
    return len(parts)


def await_stop(warm: Warm, process: int) -> None:
    """Return when the command has stopped itself, or has ended."""
    while not warm.over.exists():
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(process).status() == psutil.STATUS_STOPPED:
                return
        time.sleep(0.002)


def kill_until_done(
    warm: Warm, path: Path, arguments: list, *, kills: int, seed: int, seconds: float
) -> tuple[int, set]:
    """Start the command and kill it, `kills` times, then let it end.

    Every second kill meets the process when it has written one more part; the other ones come at any moment of a run,
    which takes about `seconds`. Returns the number of kills that left parts, and all lists of ids that readers saw.
    """
    rng = np.random.default_rng(seed)
    n_landed, readings = 0, set()
    for number in range(kills):
        after_part = number % 2 == 0
        group = warm.start(*arguments, stop_after_parts=int(after_part))
        if after_part:
            await_stop(warm, group)
        end = time.monotonic() + (0 if after_part else rng.uniform(0, seconds))
        while time.monotonic() < end and not warm.over.exists():
            readings.add(tuple(ids_for_a_reader(path) or ()))
            time.sleep(0.01)
        code = warm.kill(group)
        assert code in (0, -signal.SIGKILL), warm.log.read_text()
        n_landed += code != 0 and check_parts(path) > 0
        readings.add(tuple(ids_for_a_reader(path) or ()))
        if code == 0:
            break
    warm.done(*arguments)
    readings.add(tuple(ids_for_a_reader(path) or ()))
    return n_landed, readings


KILLED_AFTER_FIVE_PARTS = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_kill
from mertool.store import writer

real, written = writer.write_atomic, []

def write_and_die(path, content):
    real(path, content)
    written.append(path)
    if len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)

writer.write_atomic, writer.PART_CLIPS = write_and_die, 3
test_kill.write_clips(sys.argv[2])
"""


def test_a_killed_process_leaves_whole_parts_and_the_next_one_resumes(tmp_path):
    path, undisturbed = tmp_path / "killed.h5", tmp_path / "undisturbed.h5"
    command = [sys.executable, "-c", KILLED_AFTER_FIVE_PARTS, str(Path(__file__).parent), str(path)]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    assert not path.exists()
    assert check_parts(path) == 5
    write_clips(str(path))
    write_clips(str(undisturbed))
    assert content(path) == content(undisturbed)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["killed.h5", "undisturbed.h5"]


@pytest.mark.slow
def test_killed_writing_and_merging(warm, tmp_path):
    seconds = warm.done("write-clips", tmp_path / "undisturbed.h5")
    undisturbed = content(tmp_path / "undisturbed.h5")
    for seed in range(4):
        path = tmp_path / "killed.h5"
        path.unlink(missing_ok=True)
        landed, readings = kill_until_done(warm, path, ["write-clips", path], kills=8, seed=seed, seconds=seconds)
        assert landed >= 1
        assert readings == {(), tuple(CLIPS)}
        assert content(path) == undisturbed
        assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.h5", "undisturbed.h5"]


@pytest.mark.slow
def test_leftovers_of_killed_writes_are_not_read_and_are_removed(warm, tmp_path):
    path = tmp_path / "store.h5"
    group = warm.start("write-clips", path, stop_after_parts=5)
    await_stop(warm, group)
    warm.kill(group)
    assert check_parts(path) == 5
    (parts_folder(path) / ".part-99999999999999999999-late.h5.tmp-1").write_bytes(b"half a part")
    (tmp_path / ".store.h5.tmp-12345").write_bytes(b"half a merge")
    warm.done("write-clips", path)
    warm.done("write-clips", tmp_path / "undisturbed.h5")
    assert content(path) == content(tmp_path / "undisturbed.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store.h5", "undisturbed.h5"]


def manifest_of(folder: Path, demo: Path, clips: list[str]) -> Path:
    lines = (demo / "manifest.csv").read_text(encoding="utf-8").splitlines()
    rows = {line.split(",")[0]: line for line in lines[1:]}
    chosen = [rows[clip].replace(",clips/", f",{demo}/clips/").replace(",test/", f",{demo}/test/") for clip in clips]
    write_atomic(folder / f"{len(clips)}.csv", "\n".join([lines[0], *chosen]) + "\n")
    return folder / f"{len(clips)}.csv"


def all_clips(demo: Path) -> list[str]:
    lines = (demo / "manifest.csv").read_text(encoding="utf-8").splitlines()[1:]
    return [line.split(",")[0] for line in lines]


def extract_undisturbed_and_killed(warm, folder, modality, source, options, *, kills, seed):
    """Return the content of a store that was extracted in one run, and of one whose runs were killed.

    In between, a reader finds no clip of the killed store, or all of them.
    """
    undisturbed, path = folder / "undisturbed.h5", folder / "killed.h5"
    seconds = warm.done("extract", modality, source, "-o", undisturbed, *options)
    arguments = ["extract", modality, source, "-o", path, *options]
    landed, readings = kill_until_done(warm, path, arguments, kills=kills, seed=seed, seconds=seconds)
    assert landed >= 1
    assert readings <= {(), tuple(ids_for_a_reader(path))}
    return content(undisturbed), content(path)


@pytest.mark.slow
def test_extract_audio_killed(warm, tmp_path, demo, tiny_encoders):
    clips = [*all_clips(demo)[:30], "spk04_011", "spk05_001"]
    known, full = manifest_of(tmp_path, demo, clips[:8]), manifest_of(tmp_path, demo, clips)
    options = ["--encoder", tiny_encoders["hubert"], "--max-failed", 1, "--workers", 1]
    seconds = warm.done("extract", "audio", full, "-o", tmp_path / "undisturbed.h5", *options)
    path = tmp_path / "killed.h5"
    warm.done("extract", "audio", known, "-o", path, *options)
    before = ids_for_a_reader(path)
    arguments = ["extract", "audio", full, "-o", path, *options]
    landed, readings = kill_until_done(warm, path, arguments, kills=3, seed=0, seconds=seconds)
    assert landed >= 1
    assert readings <= {tuple(before), tuple(ids_for_a_reader(path))}
    undisturbed, killed = content(tmp_path / "undisturbed.h5"), content(path)
    assert {row[3] for row in undisturbed["failures"]} == {"no_audio", "unreadable"}
    assert killed == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("window", ["30", "clip"])
def test_extract_audio_of_a_whisper_killed(window, warm, tmp_path, demo, tiny_encoders):
    source = manifest_of(tmp_path, demo, [*all_clips(demo)[:8], "spk04_011", "spk05_001"])
    options = ["--encoder", tiny_encoders["whisper"], "--whisper-window", window, "--max-failed", 1, "--workers", 1]
    undisturbed, killed = extract_undisturbed_and_killed(warm, tmp_path, "audio", source, options, kills=3, seed=4)
    assert killed == undisturbed


@pytest.mark.slow
def test_finetune_of_a_whisper_killed_while_its_frozen_layers_are_written(warm, tmp_path, demo, tiny_encoders):
    """Killed after the first part of the cache and after the second; the run has the files of an undisturbed one."""
    clips = ["spk02_001", "spk02_006", "spk02_008", "spk02_012", "spk03_002", "spk03_003", "spk03_012", "spk03_013"]
    source = manifest_of(tmp_path, demo, clips)
    run, cache = tmp_path / "run", tmp_path / "frozen-layers"
    arguments = ["finetune", source, "-o", run, "--encoder", tiny_encoders["whisper"], "--layers", "2-3", "--size", 4]
    arguments += ["--mask-weight", 0.1, "--folds", 2, "--epochs", 2, "--workers", 1, "--device", "cpu", "-q"]
    arguments += ["--dtype", "float32"]
    for n_parts in (1, 2):
        group = warm.start(*arguments, stop_after_parts=1)
        await_stop(warm, group)
        assert warm.kill(group) == -signal.SIGKILL, warm.log.read_text()
        assert not list(cache.glob("*.h5"))
        (parts,) = cache.glob("*.parts")
        assert len(list(parts.glob("part-*.h5"))) == n_parts
    warm.done(*arguments)
    resumed = files_of(run)
    (store,) = cache.glob("*.h5")
    resumed_layers = content(store)
    for folder in (run, cache):
        shutil.rmtree(folder)
    warm.done(*arguments)
    assert files_of(run) == resumed
    assert content(store) == resumed_layers
    assert not list(cache.glob("*.parts"))


@pytest.mark.slow
def test_extract_video_frames_killed(warm, tmp_path, demo, tiny_encoders):
    clips = [*all_clips(demo)[:10], "spk01_014", "spk05_001"]
    source = manifest_of(tmp_path, demo, clips)
    faces = tmp_path / "faces" / "faces.h5"
    warm.done("extract", "faces", source, "-o", faces, "--fps", 2, "--max-failed", 1)
    options = ["--encoder", tiny_encoders["clip"], "--pool", "none", "--faces", faces, "--fps", 2, "--max-failed", 1]
    undisturbed, killed = extract_undisturbed_and_killed(warm, tmp_path, "video", source, options, kills=2, seed=2)
    assert {row[3] for row in undisturbed["failures"]} == {"no_face", "unreadable"}
    assert killed == undisturbed


@pytest.mark.slow
def test_predict_killed(warm, tmp_path, demo, tiny_encoders, make_bundle):
    clips = [*all_clips(demo)[:8], "spk01_014", "spk05_001"]
    few, full = manifest_of(tmp_path, demo, clips[:2]), manifest_of(tmp_path, demo, clips)
    warm.done("extract", "audio", few, "-o", tmp_path / "audio.h5", "--encoder", tiny_encoders["hubert"])
    options = ["--encoder", tiny_encoders["clip"], "--pool", "none", "--fps", 1, "--no-keep-faces"]
    warm.done("extract", "video", few, "-o", tmp_path / "frames.h5", *options)
    bundle = make_bundle(tmp_path / "run", [tmp_path / "audio.h5", tmp_path / "frames.h5"])
    options = ["--max-failed", 1, "--workers", 1]
    seconds = warm.done("predict", bundle, full, "-o", tmp_path / "undisturbed.csv", *options)
    output = tmp_path / "killed.csv"
    path = tmp_path / "killed.csv.features" / "audio.h5"
    landed, readings = kill_until_done(
        warm, path, ["predict", bundle, full, "-o", output, *options], kills=2, seed=3, seconds=seconds
    )
    assert landed >= 1
    assert readings <= {(), tuple(ids_for_a_reader(path))}
    assert output.read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()
    for name in ("audio.h5", "frames.h5"):
        assert content(path.with_name(name)) == content(tmp_path / "undisturbed.csv.features" / name)


INTERRUPTED = """
import signal, sys
from mertool.cli import main, progress
from mertool.extraction.clip_encoder import ClipEncoder
from mertool.store import writer

encode, batches = ClipEncoder.encode, []

def wait_at_the_sixth(self, batch):
    batches.append(batch)
    if len(batches) == 6:
        signal.pause()
    return encode(self, batch)

ClipEncoder.encode = wait_at_the_sixth
progress.SECONDS_BETWEEN_LINES = 0  # a line of progress per clip
writer.PART_CLIPS = 10**9
if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_the_unfinished_part(number, code, tmp_path, demo, tiny_encoders):
    """The command encodes five clips, one per batch, and is interrupted when all of them are written."""
    source, path, log = manifest_of(tmp_path, demo, all_clips(demo)[:12]), tmp_path / "audio.h5", tmp_path / "log"
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    arguments = ["extract", "audio", source, "-o", path, "--encoder", tiny_encoders["hubert"]]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, script, *map(str, arguments)],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    while "extract audio: 5 of" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.005)
    os.killpg(process.pid, number)  # as a terminal does: decoders get it too
    assert process.wait(timeout=60) == code, log.read_text()
    assert "interrupted: run the same command again to " in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not path.exists()
    (part,) = parts_of(path)
    with h5py.File(part) as file:
        assert len(file["clips/id"]) == 5

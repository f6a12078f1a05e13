"""Extraction on Ray gives what extraction in one process gives, whatever becomes of the workers.

Workers import this module for its loads; what they do not need is imported in the tests.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import psutil
import pytest
import torch

from mertool.errors import MertoolError
from mertool.extraction import ray_backend as on_ray
from mertool.extraction.clip_encoder import ClipEncoder
from mertool.extraction.driver import extract_to_stores
from mertool.extraction.job import ExtractionJob
from mertool.extraction.pooling import FeaturePooling
from mertool.extraction.ray_backend import extract_on_ray
from mertool.extraction.targets import StoreTarget
from mertool.features import Recipe
from mertool.manifest import Clip, Manifest
from mertool.store import parts_folder

HERE = Path(__file__).parent
WORKERS_PATH = f"{HERE}{os.pathsep}{HERE.parents[1]}"  # of this module and of mertool
MISSING = "Ray is not installed: pip install 'mertool[ray]'"


class Letters:
    """Encodes a text as its number of letters; one that says so ends the process, as a fault of a library does."""

    def __init__(self, seconds):
        self.seconds = seconds

    def prepare(self, text):
        if "deadly" in text:
            os._exit(1)
        return text

    def cost(self, text):
        return float(len(text))

    def encode_prepared(self, texts, keep):
        time.sleep(self.seconds)
        return [torch.full((len(keep), 1, 2), float(len(text))) for text in texts]


@dataclass(frozen=True)
class LettersLoader:
    """Loads `Letters`, or does something else: `broken` and `bug` raise, `die` ends the process."""

    seconds: float = 0.0
    outcome: str = ""

    def load(self, targets, device, max_batch_cost=None):
        if self.outcome == "broken":
            raise MertoolError("the weights are broken: fetch them again")
        if self.outcome == "bug":
            raise ZeroDivisionError("a bug of ours")
        if self.outcome == "die":
            os._exit(1)
        poolings = tuple(FeaturePooling(target.recipe, (0,)) for target in targets)
        return ClipEncoder(encoder=Letters(self.seconds), layers=(0,), poolings=poolings)


def silent(*_):
    pass


def text_job(path, loader=None, *, encoder="letters", engine="ray", overwrite=False, address=None):
    recipe = Recipe("text", encoder, "w", (0,), "mean", storage_dtype="float32")
    target = StoreTarget(path=path, recipe=recipe, overwrite=overwrite)
    return ExtractionJob(targets=(target,), encoder=loader or LettersLoader(), engine=engine, ray_address=address)


def text_manifest(texts):
    clips = [Clip(f"c{number:02d}", Path("nowhere"), text=text) for number, text in enumerate(texts)]
    return Manifest(tuple(clips), Path("clips.csv"))


TEXTS = text_manifest(["", *("word " * number for number in range(1, 24))])


@pytest.fixture(scope="module")
def cluster():
    """A Ray on this machine that believes in four cores, which is two workers."""
    ray = pytest.importorskip("ray", reason=MISSING)
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", WORKERS_PATH)
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init("local", num_cpus=4, object_store_memory=100 << 20, **quiet)
    patch.undo()
    yield
    ray.shutdown()


def content(path):
    """Values, ids, facts and failures of a store."""
    found = {}
    with h5py.File(path) as file:
        for name in ("values", "offset", "length", *(f"clips/{column}" for column in file["clips"])):
            if name in file:
                column = file[name][:]
                found[name] = (column.shape, column.tolist() if column.dtype == object else column.tobytes())
        found["failures"] = [[cell.decode() for cell in row] for row in file["failures"][:]]
        found["attributes"] = dict(file.attrs)
    return found


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """What a store of TEXTS holds."""
    path = tmp_path_factory.mktemp("letters") / "text.h5"
    extract_to_stores(TEXTS, text_job(path, engine="local"), silent)
    return content(path)


# ---------------------------------------------------------------- as without Ray


def test_audio_is_the_same(cluster, workspace, demo_rows, write_manifest, tiny_encoders, clip_names, tmp_path):
    from mertool.extract import extract
    from mertool.options.extract import ExtractOptions

    names = [*clip_names.labelled[:5], clip_names.broken, clip_names.no_sound]
    manifest = Manifest.read(write_manifest(tmp_path / "clips.csv", [demo_rows[name] for name in names]))
    options = ExtractOptions(modality="audio", encoder=str(tiny_encoders["hubert"]), storage="float32", device="cpu")
    extract(manifest, tmp_path / "local.h5", options, silent)
    steps = []
    options = replace(options, engine="ray")
    result = extract(manifest, tmp_path / "ray.h5", options, lambda *step: steps.append(step))
    ours, theirs = content(tmp_path / "ray.h5"), content(tmp_path / "local.h5")
    # Sums may be taken in another order: workers have another number of threads.
    one, other = (np.frombuffer(found.pop("values")[1], np.float32) for found in (ours, theirs))
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert ours == theirs
    assert (result.extracted, result.missing, result.failed) == (5, {"no_audio": 1}, {"unreadable": 1})
    assert steps[-1] == (7, 7, 1, pytest.approx(result.media_seconds, abs=1e-3))
    assert 0 < result.seconds["encode"] < result.seconds["wall"]
    assert not parts_folder(tmp_path / "ray.h5").exists()
    again = extract(manifest, tmp_path / "ray.h5", options, silent)
    assert (again.extracted, again.cached, again.worked) == (0, 5, False)


def test_video_and_crops_are_the_same_from_relative_paths(
    cluster, demo_rows, write_manifest, tiny_encoders, clip_names, tmp_path, monkeypatch
):
    from mertool.extract import extract
    from mertool.options.extract import ExtractOptions

    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    names = [*clip_names.labelled[:2], clip_names.no_face]
    manifest = Manifest.read(write_manifest(Path("clips.csv"), [demo_rows[name] for name in names]))
    options = ExtractOptions(
        modality="video", encoder=str(tiny_encoders["clip"]), pool="none", storage="float32", fps=1, device="cpu"
    )
    extract(manifest, Path("local/video.h5"), options, silent)
    extract(manifest, Path("ray/video.h5"), replace(options, engine="ray"), silent)
    for store, kind in (("video.h5", np.float32), ("faces.h5", np.uint8)):
        ours, theirs = content(Path("ray") / store), content(Path("local") / store)
        one, other = (np.frombuffer(found.pop("values")[1], kind) for found in (ours, theirs))
        np.testing.assert_allclose(one, other, atol=1e-4)
        assert ours == theirs
    assert [row[3] for row in content(Path("ray/faces.h5"))["failures"]] == ["no_face"]


def test_a_store_of_another_recipe_is_overwritten(cluster, letters, tmp_path):
    path = tmp_path / "text.h5"
    extract_to_stores(text_manifest(["other"] * 30), text_job(path, encoder="other", engine="local"), silent)
    extract_to_stores(TEXTS, text_job(path, overwrite=True), silent)
    assert content(path) == letters


# ---------------------------------------------------------------- workers that die


def test_a_killed_worker_is_replaced(cluster, letters, tmp_path, caplog, capsys):
    killed = []

    def kill_one(*_):
        # Ray names a process by the method it is in.
        workers = [p.pid for p in psutil.Process().children(recursive=True) if p.name() == "ray::Worker.do"]
        if workers and not killed:
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])

    summary = extract_to_stores(TEXTS, text_job(tmp_path / "text.h5", LettersLoader(0.5)), kill_one)
    assert content(tmp_path / "text.h5") == letters
    assert (summary.stats.extracted, summary.stats.reasons) == (23, {"no_text": 1})
    assert f"worker {killed[0]} died and is replaced: Worker unexpectedly exits" in caplog.text
    assert capsys.readouterr().out == ""


def test_a_clip_that_kills_its_workers_is_found_and_recorded(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "MOST_DEATHS", 2)
    monkeypatch.setattr(on_ray, "CHUNKS_EACH", 1)
    texts = ["a"] * 8
    texts[2] = "deadly"
    summary = extract_to_stores(text_manifest(texts), text_job(tmp_path / "text.h5"), silent)
    assert (summary.stats.extracted, summary.reasons) == (7, ["crashed"])
    found = content(tmp_path / "text.h5")
    assert found["values"][0] == (7, 1, 2)
    ((clip, _, _, reason, message),) = found["failures"]
    assert (clip, reason) == ("c02", "crashed")
    assert "workers died over this clip; the last: " in message


def test_a_chunk_is_halved_after_the_last_death_allowed():
    chunk = on_ray.Chunk(list("abcde"), 3)
    assert chunk.halves() == [on_ray.Chunk(["a", "b"], 2), on_ray.Chunk(["c", "d", "e"], 2)]


@pytest.mark.parametrize(("clips", "workers", "size"), [(3, 4, 1), (160, 2, 10), (10**5, 4, 256)])
def test_chunks_are_many_enough_for_all_to_end_together(clips, workers, size):
    parts = on_ray._split(list(range(clips)), workers)
    assert {len(part) for part in parts[:-1]} == {size}
    assert [clip for part in parts for clip in part] == list(range(clips))


def test_workers_that_die_as_they_start_end_the_run(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "MOST_DEATHS", 1)
    with pytest.raises(MertoolError, match="workers died as they started, 1 times each; the last: ") as error:
        extract_to_stores(TEXTS, text_job(tmp_path / "text.h5", LettersLoader(outcome="die")), silent)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- errors


def test_an_error_of_the_users_is_the_same_as_without_ray(cluster, tmp_path):
    with pytest.raises(MertoolError) as error:
        extract_to_stores(TEXTS, text_job(tmp_path / "text.h5", LettersLoader(outcome="broken")), silent)
    assert type(error.value) is MertoolError
    assert str(error.value) == "the weights are broken: fetch them again"


def test_a_bug_keeps_its_traceback(cluster, tmp_path):
    with pytest.raises(ZeroDivisionError, match=r"(?s)in load.*a bug of ours"):
        extract_to_stores(TEXTS, text_job(tmp_path / "text.h5", LettersLoader(outcome="bug")), silent)


@pytest.fixture
def connect(monkeypatch, tmp_path):
    """A function that begins a run at an address, as a process that is not connected to Ray would."""
    ray = pytest.importorskip("ray", reason=MISSING)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def run(address):
        job = text_job(tmp_path / "text.h5", address=address)
        extract_on_ray([], job=job, writers=[], face_writer=None, on_progress=silent)

    return run


@pytest.mark.parametrize("address", ["nonsense", "host:port", "ray://"])
def test_an_address_that_cannot_be_read(connect, address):
    with pytest.raises(MertoolError, match=f"'{address}' cannot be read: give auto, HOST:PORT or ray://HOST:PORT"):
        connect(address)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens(connect, scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(MertoolError, match=rf"cannot reach Ray at '{scheme}127.0.0.1:{port}' \(.*refused\)"):
        connect(f"{scheme}127.0.0.1:{port}")
    assert time.monotonic() - began < 15


def test_ray_that_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MertoolError, match=r"pip install 'mertool\[ray\]'"):
        extract_on_ray([], job=text_job(tmp_path / "text.h5"), writers=[], face_writer=None, on_progress=silent)


def test_gpus_are_shared_out():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 64.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 5.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    ray = SimpleNamespace(nodes=lambda: nodes)
    assert on_ray._shares(ray, torch.device("cuda")) == (12, {"num_cpus": 4, "num_gpus": 1})
    assert on_ray._shares(ray, torch.device("cpu")) == (8 + 32 + 2, {"num_cpus": 2})
    nodes[:2] = []
    with pytest.raises(MertoolError, match="has a GPU: give --device cpu"):
        on_ray._shares(ray, torch.device("cuda"))


# ---------------------------------------------------------------- interrupts


def fill_slowly(path):
    """What the command does in the tests of interrupts."""
    extract_to_stores(TEXTS, text_job(Path(path), LettersLoader(0.4)), lambda *step: print("done", *step, flush=True))


COMMAND = """
import sys
from mertool import cli
import test_extraction_ray
cli.app = lambda: test_extraction_ray.fill_slowly(sys.argv[1])
if __name__ == "__main__":
    cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_ray_and_keeps_finished_parts(number, code, letters, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason=MISSING)
    monkeypatch.setenv("PYTHONPATH", WORKERS_PATH)  # of the command, and of the Ray that resumes where there is none
    path, log = tmp_path / "text.h5", tmp_path / "log"
    (tmp_path / "command.py").write_text(COMMAND)
    with open(log, "wb") as file:
        command = [sys.executable, tmp_path / "command.py", path]
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    end = time.monotonic() + 90
    while "done 2" not in log.read_text() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    others = psutil.Process(process.pid).children(recursive=True)
    assert others, log.read_text()
    # A terminal sends SIGINT to the whole group, Ray's processes too; a supervisor SIGTERM to the command.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    assert process.wait(timeout=60) == code, log.read_text()
    assert "interrupted: run the same command again" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert psutil.wait_procs(others, timeout=10)[1] == []
    assert not path.exists()
    assert 2 <= len(list(parts_folder(path).glob("part-*.h5"))) < len(TEXTS)
    assert extract_to_stores(TEXTS, text_job(path), silent).stats.done < len(TEXTS)
    assert content(path) == letters

"""Extraction on Ray gives the same values as extraction in one process, also if workers die.

Ray's workers import this module for `LettersLoader`, so what they do not need is imported in the tests.
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

from mertool.errors import MertoolError, MertoolWarning
from mertool.extraction import ray_backend
from mertool.extraction.clip_encoder import ClipEncoder
from mertool.extraction.driver import extract_to_stores
from mertool.extraction.job import ExtractionJob
from mertool.extraction.pooling import FeaturePooling
from mertool.extraction.ray_cluster import connected_ray, worker_resources
from mertool.extraction.targets import StoreTarget
from mertool.features import Recipe
from mertool.manifest import Clip, Manifest
from mertool.media_digest import digest_of_signature
from mertool.store import FeatureStore, parts_folder

HERE = Path(__file__).parent
WORKERS_PATH = f"{HERE}{os.pathsep}{HERE.parents[1]}"  # of this module and of mertool
MISSING = "Ray is not installed: pip install 'mertool[ray]'"


class LetterCounter:
    """An encoder that returns a text's number of letters; some words make it do something else.

    `die` ends the process, as a fault of a library does. `die-once` does so if there is no file `died` in `folder`.
    `wait` waits for a file `released` there.
    """

    truncated = 0

    def __init__(self, folder):
        self.folder = folder

    def prepare(self, text):
        died = self.folder / "died"
        if "die" in text.split() or ("die-once" in text and not died.exists()):
            died.touch()
            os._exit(1)
        return text

    def cost(self, text):
        return float(len(text))

    def encode_prepared(self, texts, keep):
        while "wait" in texts[0] and not (self.folder / "released").exists():
            time.sleep(0.05)
        return [torch.full((len(keep), 1, 2), 7e4 if "loud" in text else float(len(text))) for text in texts]


@dataclass(frozen=True)
class LettersLoader:
    """Loads a `LetterCounter`, or fails: `user error` and `bug` raise, `die` ends the process."""

    folder: Path
    failure: str = ""

    def load(self, targets, device, max_batch_cost=None):
        if self.failure == "user error":
            raise MertoolError("the weights are broken: fetch them again")
        if self.failure == "bug":
            raise ZeroDivisionError("a bug of ours")
        if self.failure == "die":
            os._exit(1)
        poolings = tuple(FeaturePooling(target.recipe, (0,)) for target in targets)
        return ClipEncoder(encoder=LetterCounter(self.folder), layers=(0,), poolings=poolings)


def no_progress(*_):
    pass


def text_job(path, failure="", engine="ray", storage="float32"):
    recipe = Recipe(modality="text", encoder="letters", weights="w", layers=(0,), pool="mean", storage_dtype=storage)
    loader = LettersLoader(path.parent, failure)
    return ExtractionJob(targets=(StoreTarget(path=path, recipe=recipe),), encoder=loader, engine=engine)


def text_manifest(*texts):
    clips = [Clip(clip=f"c{number:02d}", path=Path("nowhere"), text=text) for number, text in enumerate(texts)]
    return Manifest(tuple(clips), Path("clips.csv"))


WORDS = ["word " * number for number in range(1, 20)]


@pytest.fixture(scope="module")
def cluster():
    """A Ray on this machine that believes in four cores, which is two workers."""
    ray = pytest.importorskip("ray", reason=MISSING)
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", WORKERS_PATH)
        ray.init("local", num_cpus=4, object_store_memory=100 << 20, **quiet)
    yield
    ray.shutdown()


def content(path):
    """Return values, ids, media statistics and failures of a store."""
    tables = {}
    with h5py.File(path) as file:
        for name in ("values", "offset", "length", *(f"clips/{column}" for column in file["clips"])):
            if name in file:
                column = file[name][:]
                tables[name] = (column.shape, column.tolist() if column.dtype == object else column.tobytes())
        # Without the times of media files, which are left out for a file that was written just now.
        tables["clips/digest"] = [digest_of_signature(cell.decode()) for cell in file["clips/digest"][:]]
        tables["failures"] = [[cell.decode() for cell in row] for row in file["failures"][:]]
        for row in tables["failures"]:
            row[1] = digest_of_signature(row[1])
        tables["attributes"] = dict(file.attrs)
    return tables


# ---------------------------------------------------------------- as without Ray


@pytest.mark.slow
def test_audio_is_the_same(cluster, workspace, demo_rows, write_manifest, tiny_encoders, clip_names, tmp_path):
    from mertool.extract import extract
    from mertool.options.extract import ExtractOptions

    names = [*clip_names.labelled[:5], clip_names.broken, clip_names.no_sound]
    manifest = Manifest.read(write_manifest(tmp_path / "clips.csv", [demo_rows[name] for name in names]))
    options = ExtractOptions(modality="audio", encoder=str(tiny_encoders["hubert"]), storage="float32", device="cpu")
    extract(manifest, tmp_path / "local.h5", options)
    steps = []
    options = replace(options, engine="ray")
    result = extract(manifest, tmp_path / "ray.h5", options, on_progress=lambda *step: steps.append(step))
    ours, theirs = content(tmp_path / "ray.h5"), content(tmp_path / "local.h5")
    # Sums may be taken in another order: workers have another number of threads.
    one, other = (np.frombuffer(tables.pop("values")[1], np.float32) for tables in (ours, theirs))
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert ours == theirs
    assert (result.extracted, result.missing, result.failed) == (5, {"no_audio": 1}, {"unreadable": 1})
    assert steps[-1] == (7, 7, 1, pytest.approx(result.media_seconds, abs=1e-3))
    assert 0 < result.seconds["encode"] < result.seconds["wall"]
    assert not parts_folder(tmp_path / "ray.h5").exists()
    again = extract(manifest, tmp_path / "ray.h5", options)
    assert (again.extracted, again.cached, again.worked) == (0, 5, False)


@pytest.mark.slow
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
    extract(manifest, Path("local/video.h5"), options)
    extract(manifest, Path("ray/video.h5"), replace(options, engine="ray"))
    for store, kind in (("video.h5", np.float32), ("faces.h5", np.uint8)):
        ours, theirs = content(Path("ray") / store), content(Path("local") / store)
        one, other = (np.frombuffer(tables.pop("values")[1], kind) for tables in (ours, theirs))
        np.testing.assert_allclose(one, other, atol=1e-4)
        assert ours == theirs
    assert [row[3] for row in content(Path("ray/faces.h5"))["failures"]] == ["no_face"]


@pytest.mark.slow
def test_parts_beyond_float16_are_joined_with_the_others(cluster, tmp_path):
    """One worker alone writes a part of float32; the driver tells it, and the store is that of a local run."""
    manifest = text_manifest(*WORDS[:5], "loud", *WORDS[5:])
    for engine in ("ray", "local"):
        job = text_job(tmp_path / f"{engine}.h5", engine=engine, storage="float16")
        with pytest.warns(MertoolWarning, match=f"{engine}.h5 holds values beyond 65,504"):
            extract_to_stores(manifest, job, no_progress)
    assert content(tmp_path / "ray.h5") == content(tmp_path / "local.h5")
    with FeatureStore(tmp_path / "ray.h5") as store:
        assert store.read(["c05", "c06"])[:, 0, 0].tolist() == [7e4, len(WORDS[5].strip())]


# ---------------------------------------------------------------- workers that die


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(cluster, tmp_path, capsys):
    manifest = text_manifest("", *WORDS, "die-once")
    summary = extract_to_stores(manifest, text_job(tmp_path / "text.h5"), no_progress)
    assert (summary.stats.extracted, summary.stats.reasons) == (20, {"no_text": 1})
    assert (tmp_path / "died").exists()
    assert capsys.readouterr().out == ""
    extract_to_stores(manifest, text_job(tmp_path / "local.h5", engine="local"), no_progress)
    assert content(tmp_path / "text.h5") == content(tmp_path / "local.h5")


@pytest.mark.slow
def test_a_clip_that_always_kills_its_worker_is_recorded(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_backend, "RETRIES", 1)
    monkeypatch.setattr(ray_backend, "CHUNKS_PER_WORKER", 1)
    summary = extract_to_stores(text_manifest(*"abc", "die", *"defg"), text_job(tmp_path / "text.h5"), no_progress)
    assert (summary.stats.extracted, summary.reasons) == (7, ["crashed"])
    assert content(tmp_path / "text.h5")["values"][0] == (7, 1, 2)
    ((clip, _, stage, reason, message),) = content(tmp_path / "text.h5")["failures"]
    assert (clip, stage, reason) == ("c03", "encode", "crashed")
    assert message == "the worker process died on this clip in 2 attempts"


@pytest.mark.slow
def test_workers_that_die_while_they_load_end_the_run(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_backend, "RETRIES", 0)
    with pytest.raises(MertoolError, match="all 2 workers died while they loaded the encoder"):
        extract_to_stores(text_manifest(*WORDS), text_job(tmp_path / "text.h5", "die"), no_progress)


@pytest.mark.parametrize(("clips", "workers", "size"), [(3, 4, 1), (160, 2, 10), (10**5, 4, 256)])
def test_chunks_are_small_enough_for_all_workers_to_end_together(clips, workers, size):
    chunks = ray_backend.split_into_chunks(range(clips), workers)
    assert {len(chunk) for chunk in chunks[:-1]} == {size}
    assert [clip for chunk in chunks for clip in chunk] == list(range(clips))


# ---------------------------------------------------------------- errors


@pytest.mark.slow
def test_a_user_error_is_the_same_as_without_ray(cluster, tmp_path):
    with pytest.raises(MertoolError) as error:
        extract_to_stores(text_manifest(*WORDS), text_job(tmp_path / "text.h5", "user error"), no_progress)
    assert type(error.value) is MertoolError
    assert str(error.value) == "the weights are broken: fetch them again"


@pytest.mark.slow
def test_a_bug_keeps_its_traceback(cluster, tmp_path):
    with pytest.raises(ZeroDivisionError, match=r"(?s)in load.*a bug of ours"):
        extract_to_stores(text_manifest(*WORDS), text_job(tmp_path / "text.h5", "bug"), no_progress)


@pytest.fixture
def connect(monkeypatch):
    """A function that connects to an address as a process without a connection to Ray would."""
    ray = pytest.importorskip("ray", reason=MISSING)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def enter(address):
        with connected_ray(address):
            pytest.fail("connected")

    return enter


@pytest.mark.parametrize("address", ["nonsense", "host:port", "ray://"])
def test_an_address_that_cannot_be_read(connect, address):
    with pytest.raises(MertoolError, match=f"'{address}' cannot be read: give auto, HOST:PORT or ray://HOST:PORT"):
        connect(address)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_refuses_connections(connect, scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(MertoolError, match=rf"cannot reach Ray at '{scheme}127.0.0.1:{port}' \(.*refused\)"):
        connect(f"{scheme}127.0.0.1:{port}")


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MertoolError, match=r"pip install 'mertool\[ray\]'"), connected_ray(None):
        pytest.fail("connected")


def test_one_worker_per_gpu_or_per_two_cores():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 64.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 5.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    ray = SimpleNamespace(nodes=lambda: nodes)
    assert worker_resources(ray, torch.device("cuda")) == (12, {"num_cpus": 4, "num_gpus": 1})
    assert worker_resources(ray, torch.device("cpu")) == (8 + 32 + 2, {"num_cpus": 2})
    nodes[:2] = []
    with pytest.raises(MertoolError, match="has a GPU: give --device cpu"):
        worker_resources(ray, torch.device("cuda"))


# ---------------------------------------------------------------- interrupts


WAITING = text_manifest("", *WORDS, "wait")
COMMAND = """
import sys
from pathlib import Path
from mertool import cli
import test_extraction_ray as tests

def extract():
    job = tests.text_job(Path(sys.argv[1]))
    tests.extract_to_stores(tests.WAITING, job, lambda done, *_: print("done", done, flush=True))

cli.app = extract
if __name__ == "__main__":
    cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_ray_and_keeps_finished_parts(number, code, tmp_path, monkeypatch):
    """The last clip is never finished, so the command is interrupted when all others are."""
    pytest.importorskip("ray", reason=MISSING)
    monkeypatch.setenv("PYTHONPATH", WORKERS_PATH)
    path, log = tmp_path / "text.h5", tmp_path / "log"
    (tmp_path / "command.py").write_text(COMMAND)
    with open(log, "wb") as file:
        command = [sys.executable, tmp_path / "command.py", path]
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    while "done 20" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    # A terminal sends SIGINT to the whole group, Ray's processes too; a supervisor SIGTERM to the command.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    assert process.wait(timeout=120) == code, log.read_text()
    assert "interrupted: run the same command again" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert not path.exists()
    assert parts_folder(path).exists()
    (tmp_path / "released").touch()
    summary = extract_to_stores(WAITING, text_job(path, engine="local"), no_progress)
    assert (summary.stats.extracted, summary.cached) == (1, 19)

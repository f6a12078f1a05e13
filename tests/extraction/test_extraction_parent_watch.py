"""Decoder processes do not outlive the process that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mertool.extraction.decoding import DecodedClip, DecoderLimits, DecoderPool
from mertool.extraction.plan import WorkItem
from mertool.manifest import Clip

DEADLINE = 60.0  # seconds; it takes a moment
START_A_POOL = "import sys, test_extraction_parent_watch as test; test.decode_without_end(sys.argv[1])"


def hang(path: Path, start: float | None, end: float | None) -> DecodedClip:
    """Tell the process id and hang, either waiting or (named `busy`) in C code that holds Python's lock."""
    path.with_suffix(".pid").write_text(str(os.getpid()))
    if path.stem == "busy":
        pow(3, 10**9)
    time.sleep(3600)
    raise AssertionError("the process was not ended")


def decode_without_end(folder: str) -> None:
    items = [WorkItem(Clip(clip=name, path=Path(folder) / f"{name}.mp4"), "") for name in ("busy", "waiting")]
    with DecoderPool(DecoderLimits(3, 3600.0)) as decoders:
        decoders.start()  # the third process has nothing to do
        for _ in decoders.read(items, hang):
            pass


def wait_for(condition) -> bool:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids_in(folder: Path) -> list[int]:
    return [int(text) for file in folder.glob("*.pid") if (text := file.read_text())]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process that holds Python's lock cannot be ended")
def test_decoders_end_with_a_parent_that_is_killed(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", START_A_POOL, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}
    ) as parent:
        assert wait_for(lambda: len(pids_in(tmp_path)) == 2), "the decoders did not start"
        started = psutil.Process(parent.pid).children(recursive=True)
        assert set(pids_in(tmp_path)) <= {process.pid for process in started}
        os.kill(parent.pid, signal.SIGKILL)
    try:
        assert wait_for(lambda: not [process for process in started if is_alive(process)])
    finally:
        for process in filter(is_alive, started):
            process.kill()

"""Errors of the system, and files that are none: one line and exit code 1, and no command waits for ever."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mertool.cli.system_errors import explain_system_error, prepare_process
from mertool.errors import MertoolError

SECONDS = 60


@pytest.fixture
def alarm():
    """Raises TimeoutError in a test that waits, as for a pipe that nobody writes into."""

    def stop(*_: object) -> None:
        raise TimeoutError("the command waits for ever")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


# ---------------------------------------------------------------- in words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 10 TiB"), "there is not enough memory (Unable to allocate 10 TiB)"),
        (OSError(errno.EMFILE, "Too many open files"), "`ulimit -n 4096`"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left on a disk or in /dev/shm"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "there is not enough memory"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b.csv"), "no permission for /a/b.csv"),
    ],
)
def test_an_error_that_a_user_can_mend_is_explained(error, words):
    message = explain_system_error(error)
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "error", [ValueError("x"), OSError("x"), FileNotFoundError(errno.ENOENT, "x", "a"), KeyError()]
)
def test_another_error_may_be_a_bug_and_is_not_explained(error):
    assert explain_system_error(error) is None


def test_the_error_of_a_pool_is_explained_by_its_cause():
    error = RuntimeError("broken pool")
    error.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert "`ulimit -n 4096`" in str(explain_system_error(error))


def test_a_working_folder_that_was_deleted(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(MertoolError, match="the working folder was deleted or cannot be read"):
        prepare_process()


# ---------------------------------------------------------------- the command line


def shell(line: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300)


def check_one_line(done: subprocess.CompletedProcess, words: str) -> None:
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


@pytest.mark.slow
def test_a_deleted_working_folder_is_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    line = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && {sys.executable} -m mertool doctor"
    check_one_line(shell(line), "the working folder was deleted")


@pytest.fixture
def extraction(tmp_path, demo, tiny_encoders):
    """The command line that extracts the audio of two clips."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for file in sorted((demo / "clips").glob("*.mp4"))[:2]:
        shutil.copy(file, clips)
    return (
        f"{sys.executable} -m mertool extract audio {clips} -o {tmp_path}/a.h5 --encoder {tiny_encoders['hubert']} -q"
    )


@pytest.mark.slow
def test_a_full_dev_shm_is_one_line(extraction):
    fill = "mount -t tmpfs -o size=4k none /dev/shm && head -c 4096 /dev/zero > /dev/shm/full"
    if not shutil.which("unshare") or shell(f"unshare -m bash -c '{fill}'").returncode:
        pytest.skip("needs the right to mount")
    check_one_line(shell(f"unshare -m bash -c '{fill}; {extraction}'"), "/dev/shm")


@pytest.mark.slow
@pytest.mark.parametrize("limit", [64, 28, 20, 12])
def test_few_open_files_are_enough_or_told(limit, extraction, tmp_path):
    done = shell(f"ulimit -n {limit}; {extraction}")
    if done.returncode:
        check_one_line(done, "ulimit -n")
    else:
        assert (tmp_path / "a.h5").exists()


# ---------------------------------------------------------------- a pipe in place of a file


@pytest.fixture
def pipe(tmp_path):
    """A function that makes a named pipe into which nobody writes."""

    def make(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        return path

    return make


COMMANDS = {
    "source": lambda pipe, demo, out: ["extract", "audio", pipe("clips.csv"), "-o", out],
    "labels": lambda pipe, demo, out: ["manifest", demo / "clips", "-o", out, "--labels", pipe("labels.csv")],
    "npz": lambda pipe, demo, out: ["manifest", demo / "clips", "-o", out, "--labels", pipe("label-6way.npz")],
    "transcripts": lambda pipe, demo, out: ["manifest", demo / "clips", "-o", out, "--transcripts", pipe("text.csv")],
    "store": lambda pipe, demo, out: ["probe-layers", pipe("a.h5"), "--manifest", demo / "manifest.csv", "-o", out],
    "ls": lambda pipe, demo, out: ["store", "ls", pipe("a.h5")],
    "check": lambda pipe, demo, out: ["store", "check", pipe("a.h5")],
    "merge": lambda pipe, demo, out: ["store", "merge", pipe("a.h5"), "-o", out],
    "existing store": lambda pipe, demo, out: ["extract", "text", demo / "manifest.csv", "-o", pipe("a.h5")],
    "predictions": lambda pipe, demo, out: ["evaluate", pipe("p.csv"), "--labels", demo / "manifest.csv"],
    "JSON lines": lambda pipe, demo, out: ["evaluate", pipe("p.jsonl"), "--labels", demo / "manifest.csv"],
    "bundle": lambda pipe, demo, out: ["predict", pipe("run/run.json").parent, demo / "clips", "-o", out],
    "config": lambda pipe, demo, out: ["manifest", demo / "clips", "-o", out, "--config", pipe("options.toml")],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_in_place_of_a_file_does_not_block(command, invoke, pipe, demo, tmp_path, alarm):
    result = invoke(*COMMANDS[command](pipe, demo, tmp_path / "out.csv"))
    assert isinstance(result.exception, MertoolError), (result.exception, result.stderr)
    assert "\n" not in str(result.exception)

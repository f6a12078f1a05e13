"""Output that the terminal cannot show, a closed pipe and a full disk never end a command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clips(tmp_path):
    """A folder with a Chinese name that holds clips of Chinese, accented and undecodable names."""
    folder = tmp_path / "片段"
    folder.mkdir()
    for name in ("测试.mp4", "é.mp4", "😀.mp4", "a.mp4"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "标签.csv").write_text("name,label\n测试,高兴\né,sad\n没有,sad\n", encoding="utf-8")
    return folder


def command(clips: Path, *more: str) -> list[str]:
    labels = str(clips.parent / "标签.csv")
    return [
        sys.executable,
        "-m",
        "mertool",
        "manifest",
        str(clips),
        "-o",
        str(clips / "清单.csv"),
        "--labels",
        labels,
        *more,
    ]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict", "utf-8"])
def test_output_that_the_encoding_lacks_is_escaped(encoding, clips):
    done = subprocess.run(command(clips), capture_output=True, env=environment(PYTHONIOENCODING=encoding), timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    expected = "清单.csv" if encoding == "utf-8" else "\\u6e05\\u5355.csv"
    assert f"manifest: {clips.parent}/".encode("ascii", "ignore")[:10] in done.stdout
    assert expected.encode() in done.stdout
    assert b"not in the folder (first: " in done.stderr
    assert (clips / "清单.csv").is_file()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_stays_json(encoding, clips):
    done = subprocess.run(
        command(clips, "--json"), capture_output=True, env=environment(PYTHONIOENCODING=encoding), timeout=60
    )
    assert json.loads(done.stdout.decode(encoding))["manifest"] == str(clips / "清单.csv")


@pytest.mark.parametrize("arguments", [["--help"], ["models"]])
def test_tables_and_help_in_ascii(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "mertool", *arguments],
        capture_output=True,
        env=environment(PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    done.stdout.decode("ascii")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output(clips):
    with open("/dev/full", "w") as full:
        done = subprocess.run(command(clips), stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=60)
        assert done.returncode == 0
        told = [line for line in done.stderr.decode().splitlines() if not line.startswith("note: ")]
        assert told == ["warning: cannot write to standard output (No space left on device); the command goes on"]
        silent = subprocess.run(command(clips), stdout=full, stderr=full, env=environment(), timeout=60)
    assert silent.returncode == 0
    assert (clips / "清单.csv").is_file()


@pytest.mark.parametrize("buffering", ["", "1"])
def test_a_pipe_that_nobody_reads(buffering, clips):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command(clips), stdout=writing, stderr=subprocess.PIPE, env=environment(PYTHONUNBUFFERED=buffering), timeout=60
    )
    os.close(writing)
    assert done.returncode == 0
    assert all(line.startswith("note: ") for line in done.stderr.decode().splitlines())
    failed = [sys.executable, "-m", "mertool", "manifest", str(clips / "nowhere"), "-o", "x.csv"]
    reading, writing = os.pipe()
    os.close(reading)
    assert subprocess.run(failed, stdout=writing, stderr=writing, env=environment(), timeout=60).returncode == 1
    os.close(writing)


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors of POSIX")
def test_closed_standard_streams(clips):
    for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
        shell = ["sh", "-c", f'"$@" {closed}', "sh", *command(clips)]
        assert subprocess.run(shell, env=environment(), capture_output=True, timeout=60).returncode == 0

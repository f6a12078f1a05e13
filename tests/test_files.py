"""Writing whole files or none, one line for every trouble, and digests."""

import errno
import os
from pathlib import Path

import pytest

from mertool.errors import MertoolError
from mertool.files import (
    canonical_json,
    check_replaceable,
    check_writable,
    content_digest,
    digest_json,
    explain_write_errors,
    make_folder,
    write_atomic,
)


def test_text_and_bytes_are_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomic(path, "好\n")
    assert path.read_bytes() == "好\n".encode()
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["a.txt"]


def test_data_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), real_sync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), real_replace(*a))[1])
    write_atomic(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_leaves_the_old_file_and_no_other(number, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def full(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MertoolError, match=r"the disk is full: cannot write .*a\.txt.*free some space") as caught:
        write_atomic(path, "new")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "error",
    [
        OSError("Can't synchronously write data (file write failed: errno = 28, error message = 'No space left')"),
        RuntimeError("Can't decrement id ref count (file write failed: errno = 28, error message = 'No space left')"),
    ],
)
def test_hdf5_says_full_in_its_own_words(error):
    with pytest.raises(MertoolError, match=r"the disk is full: cannot write x\.h5"), explain_write_errors(Path("x.h5")):
        raise error


def test_a_missing_right_is_named():
    words = r"^cannot write x: Permission denied\. Choose another output path$"
    with pytest.raises(MertoolError, match=words), explain_write_errors(Path("x")):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"), explain_write_errors(Path("x")):
        raise RuntimeError("a bug")


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(MertoolError, match="cannot write"):
        make_folder(tmp_path / "a" / "b")
    with pytest.raises(MertoolError, match="cannot write"):
        check_writable(tmp_path / "a" / "b.h5")


def test_a_folder_where_a_file_should_be(tmp_path):
    with pytest.raises(MertoolError, match=r"it is a folder\. Give the path of a file"):
        check_writable(tmp_path)


def test_asking_whether_a_file_can_be_written_leaves_nothing(tmp_path):
    check_writable(tmp_path / "deep" / "a.h5")
    assert os.listdir(tmp_path) == []


def test_an_input_is_not_written_over(tmp_path):
    given = tmp_path / "labels.csv"
    given.write_text("clip,label\n")
    with pytest.raises(MertoolError, match="it is an input of this command"):
        check_writable(tmp_path / ".." / tmp_path.name / "labels.csv", None, given)
    check_writable(tmp_path / "other.csv", given)


@pytest.mark.parametrize("name", ["link.csv", "hard.csv", "Labels.CSV"])
def test_an_input_by_another_name_is_not_written_over(name, tmp_path):
    given = tmp_path / "labels.csv"
    given.write_text("clip,label\n")
    (tmp_path / "link.csv").symlink_to(given)
    (tmp_path / "hard.csv").hardlink_to(given)
    with pytest.raises(MertoolError, match="it is an input of this command"):
        check_writable(tmp_path / name, given)


def test_nothing_is_written_into_a_run_that_is_an_input(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(MertoolError, match="a run that this command reads"):
        check_writable(tmp_path / "run" / "p.csv", tmp_path / "run")
    check_writable(tmp_path / "run" / "p.csv", tmp_path / "other")


@pytest.mark.parametrize("given", ["run", "run/clips.csv", "link/clips.csv", "Run/deep/a.h5"])
def test_a_new_run_does_not_replace_a_folder_with_its_inputs(given, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(MertoolError, match="is an input of this command, and a new run replaces the whole folder"):
        check_replaceable(tmp_path / "run", None, tmp_path / given)
    check_replaceable(tmp_path / "run", tmp_path / "run-2" / "clips.csv")


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(MertoolError, match="it is not a regular file"):
            check_writable(path)


def test_equal_values_have_equal_digests():
    assert digest_json({"b": [1, None], "a": "好"}) == digest_json({"a": "好", "b": (1, None)})
    assert digest_json({"a": 1}) != digest_json({"a": "1"})
    assert canonical_json({"b": 1, "a": "好"}) == '{"a":"好","b":1}'


def test_a_content_digest_is_of_names_and_all_bytes(tmp_path):
    for folder, name, content in (("1", "a", b"x"), ("2", "a", b"x"), ("3", "b", b"x"), ("4", "a", b"y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(content)
    found = [content_digest(list((tmp_path / folder).iterdir())) for folder in "1234"]
    assert found[0] == found[1]
    assert len(set(found)) == 3

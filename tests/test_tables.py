"""Limits of tables: columns, bytes, and files that are no files. Encodings and delimiters are in interop/."""

import os

import pytest

from mertool import tables
from mertool.errors import MertoolError
from mertool.tables import read_table


def test_a_million_columns_are_refused(tmp_path):
    (tmp_path / "wide.csv").write_text(",".join(f"c{number}" for number in range(1_000_000)) + "\n" + "x," * 10 + "\n")
    with pytest.raises(MertoolError, match=r"wide\.csv has 1,000,000 columns, at most 2,000 are read"):
        read_table(tmp_path / "wide.csv", "labels")


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "large.csv", "wb") as file:
        file.truncate(tables.MAX_TABLE_BYTES + 1)  # sparse: it takes no room on the disk
    with pytest.raises(MertoolError, match="at most 536,870,912 are read: give labels as a text file"):
        read_table(tmp_path / "large.csv", "labels")


@pytest.mark.parametrize("kind", ["pipe", "folder", "missing", "device"])
def test_what_is_no_file_is_refused(kind, tmp_path):
    path = tmp_path / "labels.csv"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(
        MertoolError, match=r"labels\.csv (is not a regular file|cannot be read|does not exist)"
    ) as caught:
        read_table(path, "labels")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("clip,label\n")
    (tmp_path / "labels.csv").chmod(0)
    with pytest.raises(MertoolError, match="Permission denied"):
        read_table(tmp_path / "labels.csv", "labels")

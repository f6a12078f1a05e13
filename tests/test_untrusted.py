"""Files from strangers: pipes do not block, sizes are limited, and JSON is strict."""

import os
from pathlib import Path

import pytest

from mertool import untrusted
from mertool.errors import MertoolError
from mertool.untrusted import parse_json, read_bytes, read_json, read_json_object

HOSTILE_JSON = {
    "nested lists": ("[" * 100_000 + "]" * 100_000, "nested"),
    "nested objects": ('{"a":' * 70 + "1" + "}" * 70, "nested more than 64"),
    "a repeated key": ('{"seal": 1, "a": {"x": 1, "x": 2}}', "the key 'x' is repeated"),
    "NaN": ('{"a": NaN}', "NaN is not JSON"),
    "infinity": ("[-Infinity]", "-Infinity is not JSON"),
    "a float that overflows": ("[1e999]", "1e999 is too large"),
    "an integer of many digits": ("[" + "9" * 5000 + "]", "does not fit 64 bits"),
    "an integer of 65 bits": ("[18446744073709551616]", "does not fit 64 bits"),
    "half a file": ('{"a": [1, 2', "delimiter"),
    "nothing": ("", "Expecting value"),
}


@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_hostile_json_is_refused_in_one_line(kind, tmp_path):
    text, words = HOSTILE_JSON[kind]
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(MertoolError, match=rf"run\.json cannot be read \(.*{words}.*\): fuse again") as caught:
        read_json(path, "fuse again")
    assert "\n" not in str(caught.value)


def test_ordinary_json_is_read(tmp_path):
    text = '{"classes": ["好", "b"], "seed": -3, "size": 9223372036854775807, "waf": 0.5, "none": null, "deep": [[[]]]}'
    expected = {
        "classes": ["好", "b"],
        "seed": -3,
        "size": 2**63 - 1,
        "waf": 0.5,
        "none": None,
        "deep": [[[]]],
    }
    assert parse_json(text) == expected
    (tmp_path / "bom.json").write_text(text, encoding="utf-8-sig")
    assert read_json(tmp_path / "bom.json", "") == expected


def test_json_that_is_not_utf8(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(MertoolError, match=r"a\.json cannot be read .*: try again"):
        read_json(tmp_path / "a.json", "try again")


@pytest.mark.parametrize("text", ["[]", "1", '"a"', "null"])
def test_an_object_is_needed(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(MertoolError, match="it holds no JSON object"):
        read_json_object(tmp_path / "a.json", "")


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(MertoolError, match=r"run\.json is not a regular file: make it again"):
        read_bytes(tmp_path / "run.json", "make it again")


@pytest.mark.parametrize("path", ["/dev/zero", "/", "/does/not/exist", "a\0b"])
def test_what_is_no_file_is_refused(path):
    with pytest.raises(MertoolError, match=": give a file"):
        read_bytes(Path(path), "give a file")


def test_a_file_that_is_too_large(tmp_path):
    with open(tmp_path / "big", "wb") as file:
        file.truncate(untrusted.MAX_BYTES + 1)  # sparse: it takes no room on the disk
    with pytest.raises(MertoolError, match="has 67,108,865 bytes, at most 67,108,864 are read"):
        read_bytes(tmp_path / "big", "")

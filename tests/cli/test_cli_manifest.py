"""`mertool manifest`: labels, transcripts and speakers of a folder, in any form, and what is told of them."""

import csv
import json
import os
from pathlib import Path

import pytest

from mertool.errors import MertoolError
from mertool.manifest import EMOTIONS


@pytest.fixture
def clips(tmp_path):
    """A folder with four clips, one of two files."""
    folder = tmp_path / "clips"
    for name in ("x/a.mp4", "x/a.wav", "x/b.mp4", "y/c.wav", "y/d.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def rows(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return {row["clip"]: row for row in csv.DictReader(file)}


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_a_clip_of_two_files_has_both_in_the_manifest(clips, tmp_path, call):
    result = call("manifest", clips, "-o", tmp_path / "m.csv")
    assert (rows(tmp_path / "m.csv")["a"]["path"], rows(tmp_path / "m.csv")["a"]["audio"]) == (
        "clips/x/a.mp4",
        "clips/x/a.wav",
    )
    assert "note: 1 clip from two files: the picture of the video file" in result.stderr


def test_what_a_table_says_is_in_the_manifest(clips, tmp_path, call):
    labels = write(
        tmp_path / "l.csv",
        "file;emotion;gender;speaker;split;age\n/data/x/a.wav;happiness;female;s1;train;30\n"
        "x\\b.mp4;开心;male;s2;dev;40\nc.wav;;;;;\n",
        "gbk",
    )
    result = call("manifest", clips, "-o", tmp_path / "m.csv", "--labels", labels)
    written = rows(tmp_path / "m.csv")
    fields = ("label", "split", "speaker", "gender")
    assert [written["a"][field] for field in fields] == ["happy", "train", "s1", "female"]
    assert [written["b"][field] for field in fields] == ["happy", "dev", "s2", "male"]
    assert [written["c"][field] for field in fields] == ["", "unlabelled", "", ""]
    assert f"note: {labels} is read as GB18030" in result.stderr
    assert f"note: columns of {labels} that are not used: age" in result.stderr


def test_labels_without_a_clip_are_a_warning_with_count_and_example(clips, tmp_path, call):
    labels = write(tmp_path / "l.csv", "name,label\na,sad\nnobody,sad\nnowhere,happy\n")
    result = call("manifest", clips, "-o", tmp_path / "m.csv", "--labels", labels, "--json")
    assert f"note: labels {labels}: 2 rows are of clips not in the folder (first: nobody)" in result.stderr
    assert "not in the folder" not in result.stdout


def test_a_clip_that_no_csv_can_name_is_left_out_and_counted_out(clips, tmp_path, call):
    try:
        (clips / os.fsdecode(b"\xb2\xe2.mp4")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    result = call("manifest", clips, "-o", tmp_path / "m.csv", "--json")
    assert json.loads(result.stdout)["clips"] == len(rows(tmp_path / "m.csv")) == 4
    assert r"1 clip left out, because a file name is not in UTF-8 (first: " in result.stderr
    assert r"\xb2\xe2.mp4" in result.stderr


def test_the_encoding_is_told_before_a_fault_of_the_labels(clips, tmp_path, invoke):
    labels = write(tmp_path / "l.csv", "文件名;情感\na;无聊\n", "gbk")
    result = invoke("manifest", clips, "-o", tmp_path / "m.csv", "--labels", labels)
    assert f"note: {labels} is read as GB18030" in result.stderr
    assert "unknown labels '无聊' (1 clip)" in str(result.exception)


def test_the_message_for_unknown_labels_names_classes(clips, tmp_path, invoke):
    labels = write(tmp_path / "l.csv", "name,label\na,bored\nb,fear\n")
    result = invoke("manifest", clips, "-o", tmp_path / "m.csv", "--labels", labels)
    assert isinstance(result.exception, MertoolError)
    assert "'bored' (1 clip), 'fear' (1 clip)" in str(result.exception)
    assert "--classes a,b,c" in str(result.exception)
    assert not (tmp_path / "m.csv").exists()


def test_numbers_are_written_as_the_classes_that_are_given(clips, tmp_path, call, invoke):
    labels = write(tmp_path / "l.csv", "name,label\na,0\nb,1\nc,1.0\n")
    result = invoke("manifest", clips, "-o", tmp_path / "m.csv", "--labels", labels)
    assert "these are numbers, name their classes in index order with" in str(result.exception)
    call("manifest", clips, "-o", tmp_path / "m.csv", "--labels", labels, "--classes", ",".join(EMOTIONS))
    assert [row["label"] for row in rows(tmp_path / "m.csv").values()] == ["neutral", "angry", "angry", ""]
    call("manifest", clips, "-o", tmp_path / "m.csv", "--labels", labels, "--classes", "calm,tense")
    assert {clip: row["label"] for clip, row in rows(tmp_path / "m.csv").items()} == {
        "a": "calm",
        "b": "tense",
        "c": "tense",
        "d": "",
    }


def test_the_language_of_transcripts(clips, tmp_path, call, invoke):
    texts = write(tmp_path / "t.csv", "name,chinese,english\na,我很好,I am fine\n")
    call("manifest", clips, "-o", tmp_path / "m.csv", "--transcripts", texts, "--language", "english")
    assert rows(tmp_path / "m.csv")["a"]["text"] == "I am fine"
    result = invoke("manifest", clips, "-o", tmp_path / "m.csv", "--language", "english")
    assert "--language is of --transcripts: give both" in str(result.exception)


def test_the_manifest_is_a_label_table_as_well(clips, tmp_path, call):
    labels = write(tmp_path / "l.csv", "name,label,speaker,text\na,sad,s1,Oh.\nc,happy,s2,Well.\n")
    call("manifest", clips, "-o", tmp_path / "m.csv", "--labels", labels)
    call("manifest", clips, "-o", tmp_path / "again.csv", "--labels", tmp_path / "m.csv")
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "m.csv").read_text()

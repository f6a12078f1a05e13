"""Folders of Hugging Face datasets: metadata tables, splits by folder, and tables that datasets would refuse."""

import json
from pathlib import Path

import pytest

from mertool.errors import MertoolError
from mertool.interop.annotations import annotate
from mertool.interop.labels import read_labels
from mertool.manifest import Clip, Manifest

ROWS = {
    "train": [{"file_name": "a.wav", "emotion": "happy", "transcription": "good, morning", "speaker_id": "1"}],
    "test": [{"file_name": "sub/a.wav", "emotion": "sad", "transcription": "", "speaker_id": "2"}],
}


def write_table(folder: Path, rows: list[dict], kind: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif kind == "csv":
        quoted = [",".join(f'"{value}"' for value in row.values()) for row in rows]
        text = "\n".join([",".join(rows[0]), *quoted]) + "\n"
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")
        return
    (folder / f"metadata.{kind}").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_tables_of_splits(kind, tmp_path):
    for split, rows in ROWS.items():
        write_table(tmp_path / split, rows, kind)
    rows = read_labels(tmp_path).rows
    assert [(row.name, row.label, row.text, row.speaker, row.split) for row in rows] == [
        ("test/sub/a.wav", "sad", None, "2", "test"),
        ("train/a.wav", "happy", "good, morning", "1", "train"),
    ]
    manifest = Manifest(
        (Clip(clip="x", path=tmp_path / "train" / "a.wav"), Clip(clip="y", path=tmp_path / "test" / "sub" / "a.wav")),
        tmp_path,
    )
    joined = annotate(manifest, read_labels(tmp_path)).manifest
    assert [(clip.clip, clip.label) for clip in joined.clips] == [("x", "happy"), ("y", "sad")]
    assert [clip.split for clip in joined.clips] == ["train", "test"]


def test_one_table_whose_files_are_in_folders_of_splits(tmp_path):
    names = ["data/train/a.mp4", "data/validation/b.mp4", "data/eval-clean/c.mp4", "data/d.mp4"]
    write_table(tmp_path, [{"file_name": name, "label": "sad"} for name in names], "csv")
    assert [row.split for row in read_labels(tmp_path / "metadata.csv").rows] == ["train", "dev", "test", None]


@pytest.mark.parametrize("column", ["audio_file_name", "video_file_name"])
def test_named_columns_of_files(column, tmp_path):
    write_table(tmp_path, [{"id": 7, column: "a.mp4", "label": 3}], "jsonl")
    (row,) = read_labels(tmp_path).rows
    assert (row.name, row.clip, row.label) == ("a.mp4", None, "3")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_without_file_name_is_refused(kind, tmp_path):
    write_table(tmp_path, [{"file": "a.wav", "label": "sad"}], kind)
    with pytest.raises(MertoolError, match=r"has no column file_name, .*: it has file, label; add the files"):
        read_labels(tmp_path)


def test_metadata_of_two_kinds_is_refused_as_datasets_does(tmp_path):
    write_table(tmp_path / "train", ROWS["train"], "csv")
    write_table(tmp_path / "test", ROWS["test"], "jsonl")
    with pytest.raises(MertoolError, match="metadata of several kinds"):
        read_labels(tmp_path)


@pytest.mark.parametrize(("line", "message"), [("{", "line 1 is not JSON"), ("[1]", "line 1 is not a JSON object")])
def test_lines_of_another_kind_are_refused(line, message, tmp_path):
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(MertoolError, match=message):
        read_labels(tmp_path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(MertoolError, match=r"needs pyarrow: pip install 'mertool\[parquet\]'"):
        read_labels(tmp_path)

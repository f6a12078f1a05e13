"""Manifests as folders of Hugging Face datasets."""

import json

import pytest

from mertool.errors import MertoolError
from mertool.interop.annotations import annotate
from mertool.interop.hf_export import export_manifest
from mertool.interop.labels import read_labels
from mertool.manifest import Clip, Manifest


@pytest.fixture
def manifest(tmp_path):
    clips = []
    for name, split, label in (
        ("a", "train", "sad"),
        ("b", None, None),
        ("c", "dev", "happy"),
        ("d", "unlabelled", None),
    ):
        path = tmp_path / "media" / f"{name}.WAV"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
        clips.append(
            Clip(clip=f"clip {name}", path=path, split=split, label=label, text=f"it's {name}, 对", speaker="s")
        )
    return Manifest(tuple(clips), tmp_path / "clips.csv")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_what_is_exported_is_read_again(kind, manifest, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    counts = export_manifest(manifest, tmp_path / "out", kind=kind)
    assert counts == {"train": 2, "validation": 1, "unlabelled": 1}
    assert (tmp_path / "out" / "validation" / "clip c.wav").read_bytes() == b"c"
    joined = annotate(Manifest.from_folder(tmp_path / "out"), read_labels(tmp_path / "out")).manifest
    splits = {"clip a": "train", "clip b": "train", "clip c": "dev", "clip d": "unlabelled"}
    by_id = {clip.clip: clip for clip in joined.clips}
    for clip in manifest.clips:
        read = by_id[clip.clip]
        assert (read.label, read.text, read.speaker) == (clip.label, clip.text, clip.speaker)
        assert read.split == splits[clip.clip]


def test_every_table_has_the_same_columns_with_texts(manifest, tmp_path):
    export_manifest(manifest, tmp_path / "out")
    tables = [path.read_text(encoding="utf-8").splitlines() for path in (tmp_path / "out").glob("*/metadata.jsonl")]
    rows = [json.loads(line) for table in tables for line in table]
    assert {tuple(row) for row in rows} == {("file_name", "clip", "label", "text", "speaker", "gender")}
    assert all(isinstance(value, str) for row in rows for value in row.values())
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "  - split: unlabelled\n    path: unlabelled/**\n" in card


def test_clips_that_cannot_be_exported_are_told_at_once(manifest, tmp_path):
    path = manifest.clips[0].path
    clips = (Clip(clip="x", path=path, start=1.0), Clip(clip="y", text="hi"), Clip(clip="z", path=tmp_path / "no.wav"))
    with pytest.raises(
        MertoolError, match=r"3 faults: 'x' is a part of a file: .*'y' has no media file; .*no\.wav of 'z'"
    ):
        export_manifest(Manifest(clips, tmp_path / "c.csv"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(MertoolError, match="exists: give another -o"):
        export_manifest(manifest, tmp_path)

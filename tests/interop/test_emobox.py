"""EmoBox's metadata: jsonl of a corpus, folders of folds, label maps."""

import json
from pathlib import Path

import pytest

from mertool.errors import MertoolError
from mertool.interop.annotations import annotate
from mertool.interop.labels import read_labels
from mertool.manifest import Clip, Manifest


def entry(key: str, wav: str, emo: str, **more: object) -> dict[str, object]:
    """As EmoBox writes them."""
    return {
        "key": key,
        "dataset": "iemocap",
        "wav": wav,
        "type": "raw",
        "sample_rate": 16000,
        "num_frame": 31129.0,
        "task": "category",
        "length": 1.9455,
        "emo": emo,
        "channel": 1,
        **more,
    }


def write_jsonl(path: Path, *entries: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in entries), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path):
    """A corpus with one fold, as `data/iemocap` of the repository."""
    folder = tmp_path / "iemocap"
    rows = [
        entry("iemocap-F000", "downloads/iemocap/Session1/wav/F000.wav", "neu"),
        entry("iemocap-F001", "downloads/iemocap/Session1/wav/F001.wav", "exc"),
        entry("iemocap-F002", "downloads/iemocap/Session2/wav/F002.wav", "sad"),
    ]
    write_jsonl(folder / "iemocap.jsonl", *rows)
    (folder / "iemocap.json").write_text(json.dumps({row.pop("key"): row for row in map(dict, rows)}))
    write_jsonl(folder / "fold_1" / "iemocap_train_fold_1.jsonl", rows[0])
    write_jsonl(folder / "fold_1" / "iemocap_valid_fold_1.jsonl", rows[1])
    write_jsonl(folder / "fold_1" / "iemocap_test_fold_1.jsonl", rows[2])
    (folder / "label_map.json").write_text(json.dumps({"neu": "Neutral", "exc": "Happy", "sad": "Sad"}))
    return folder


def rows_of(path: Path) -> list[tuple[str, str | None, str | None]]:
    return [(row.name.rpartition("/")[2], row.label, row.split) for row in read_labels(path).rows]


WHOLE = [("F000.wav", "Neutral", None), ("F001.wav", "Happy", None), ("F002.wav", "Sad", None)]


@pytest.mark.parametrize("name", ["iemocap.jsonl", "iemocap.json", "."])
def test_a_corpus_with_its_label_map(name, corpus):
    assert rows_of(corpus / name) == WHOLE
    assert "label_map.json" in read_labels(corpus / name).notes[0]


def test_a_list_in_one_json_file(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps([entry("k", "a.wav", "sad")]))
    assert rows_of(tmp_path / "c.json") == [("a.wav", "sad", None)]


def test_the_folder_of_a_fold_has_splits(corpus):
    assert rows_of(corpus / "fold_1") == [
        ("F002.wav", "Sad", "test"),
        ("F000.wav", "Neutral", "train"),
        ("F001.wav", "Happy", "dev"),
    ]
    assert rows_of(corpus / "fold_1" / "iemocap_test_fold_1.jsonl") == [("F002.wav", "Sad", "test")]


def test_several_test_sets_of_one_fold(tmp_path):
    """MER2023 has the files test1, test2 and test3, and test with all of them."""
    folder = tmp_path / "mer2023" / "fold_1"
    one, two = entry("1", "a.wav", "sad"), entry("2", "b.wav", "happy")
    write_jsonl(folder / "mer2023_test_fold_1.jsonl", one, two)
    write_jsonl(folder / "mer2023_test1_fold_1.jsonl", one)
    write_jsonl(folder / "mer2023_test2_fold_1.jsonl", two)
    assert sorted(rows_of(folder)) == [("a.wav", "sad", "test"), ("b.wav", "happy", "test")]


def test_clips_are_found_by_file_and_by_key(corpus):
    clips = (Clip(clip="F000", path=Path("/x/Session1/wav/F000.wav")), Clip(clip="iemocap-F002", path=Path("/y.wav")))
    joined = annotate(Manifest(clips, Path("/x")), read_labels(corpus / "iemocap.jsonl"))
    assert [(clip.clip, clip.label) for clip in joined.manifest.clips] == [("F000", "Neutral"), ("iemocap-F002", "Sad")]
    assert joined.unmatched == ["downloads/iemocap/Session1/wav/F001.wav"]


def test_parts_of_files_have_times(tmp_path):
    """As in PAVOQUE."""
    rows = [entry(f"p-{n}", "long.wav", "sad", start_time=n, end_time=n + 1.5) for n in range(2)]
    clips = Manifest((Clip(clip="long", path=Path("long.wav")),), Path("x"))
    joined = annotate(clips, read_labels(write_jsonl(tmp_path / "pavoque.jsonl", *rows))).manifest
    assert [(clip.clip, clip.start, clip.end) for clip in joined.clips] == [("p-0", None, 1.5), ("p-1", 1.0, 2.5)]


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"wav": "a.wav"}', '"a"', "[" * 100_000])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_file_of_another_form_is_refused_in_one_line(text, suffix, tmp_path):
    (tmp_path / f"l{suffix}").write_text(text)
    with pytest.raises(MertoolError, match=r"l\.json.*: give a file as CORPUS\.jsonl"):
        read_labels(tmp_path / f"l{suffix}")


def test_a_folder_without_labels_is_refused(tmp_path):
    with pytest.raises(MertoolError, match="holds no labels of EmoBox: give a file as CORPUS"):
        read_labels(tmp_path)

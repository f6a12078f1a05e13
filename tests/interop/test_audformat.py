"""Databases of audformat. The files are those that audformat 1.4.3 wrote by `Database.save`."""

from pathlib import Path

import pytest

from mertool.errors import MertoolError
from mertool.interop.labels import read_labels

HEADER = """\
name: mini
source: x
usage: unrestricted
languages: [deu]
schemes:
  age: {dtype: int}
  confidence: {dtype: float, minimum: 0, maximum: 1}
  emotion:
    dtype: str
    labels: [anger, happiness]
  gender:
    dtype: str
    labels: [female, male]
  speaker: {dtype: str, labels: speaker}
  transcription:
    dtype: str
    labels: {a01: Der Lappen liegt, b02: Das}
splits:
  dev: {type: dev}
  test: {type: test}
  train: {type: train}
tables:
  emotion.categories.test.gold_standard:
    type: filewise
    split_id: test
    columns:
      emotion: {scheme_id: emotion}
      emotion.confidence: {scheme_id: confidence}
  emotion.categories.train.gold_standard:
    type: filewise
    split_id: train
    columns:
      emotion: {scheme_id: emotion}
      emotion.confidence: {scheme_id: confidence}
  files:
    type: filewise
    columns:
      speaker: {scheme_id: speaker}
      transcription: {scheme_id: transcription}
  segments:
    type: segmented
    split_id: dev
    columns:
      emotion: {scheme_id: emotion}
misc_tables:
  speaker:
    levels: {speaker: str}
    columns:
      gender: {scheme_id: gender}
      age: {scheme_id: age}
"""
TABLES = {
    "emotion.categories.test.gold_standard": "file,emotion,emotion.confidence\nwav/c.wav,anger,0.9\n",
    "emotion.categories.train.gold_standard": (
        "file,emotion,emotion.confidence\nwav/a.wav,anger,0.9\nwav/b.wav,happiness,0.9\n"
    ),
    "files": "file,speaker,transcription\nwav/a.wav,s1,a01\nwav/b.wav,s1,b02\nwav/c.wav,s2,a01\nwav/long.wav,s2,\n",
    "segments": (
        "file,start,end,emotion\n"
        "wav/long.wav,0 days 00:00:00.000000,0 days 00:00:01.500000,anger\n"
        "wav/long.wav,0 days 00:00:01.500000,,happiness\n"
    ),
    "speaker": "speaker,gender,age\ns1,female,30\ns2,male,40\n",
}


@pytest.fixture
def database(tmp_path):
    (tmp_path / "db.yaml").write_text(HEADER, encoding="utf-8")
    for name, text in TABLES.items():
        (tmp_path / f"db.{name}.csv").write_text(text, encoding="utf-8")
    return tmp_path


def facts(path: Path) -> dict:
    """Everything that the rows of a file or segment say together, by file and times."""
    found: dict = {}
    for row in read_labels(path).rows:
        entry = found.setdefault((row.name, row.start, row.end), {})
        for field in ("label", "text", "speaker", "gender", "split"):
            if (value := getattr(row, field)) is not None:
                assert entry.setdefault(field, value) == value
    return found


@pytest.mark.parametrize("name", [".", "db.yaml"])
def test_tables_of_files_and_segments_are_joined(name, database):
    one = {"speaker": "s1", "gender": "female", "split": "train"}
    two = {"speaker": "s2", "gender": "male"}
    assert facts(database / name) == {
        ("wav/a.wav", None, None): {"label": "anger", "text": "Der Lappen liegt", **one},
        ("wav/b.wav", None, None): {"label": "happiness", "text": "Das", **one},
        ("wav/c.wav", None, None): {"label": "anger", "text": "Der Lappen liegt", "split": "test", **two},
        ("wav/long.wav", None, 1.5): {"label": "anger", "split": "dev", **two},
        ("wav/long.wav", 1.5, None): {"label": "happiness", "split": "dev", **two},
    }


def test_columns_that_are_not_read_are_named(database):
    (note,) = read_labels(database).notes
    assert note.endswith("that are not used: emotion.confidence")


def test_speakers_whose_facts_are_labels_of_the_scheme(database):
    header = HEADER.replace("speaker: {dtype: str, labels: speaker}", "speaker: {labels: {s1: {gender: female}, s2: }}")
    (database / "db.yaml").write_text(header)
    assert facts(database)["wav/a.wav", None, None]["gender"] == "female"
    assert "gender" not in facts(database)["wav/c.wav", None, None]


def test_arousal_and_valence_are_numbers(database):
    (database / "db.yaml").write_text(
        HEADER.replace("age: {dtype: int}", "arousal: {dtype: float}", 1).replace(
            "      transcription: {scheme_id: transcription}", "      arousal.mean: {scheme_id: arousal}"
        )
    )
    table = database / "db.files.csv"
    table.write_text("file,speaker,arousal.mean\nwav/a.wav,s1,0.25\nwav/b.wav,s1,\n")
    assert {row.name: row.arousal for row in read_labels(database).rows if row.speaker} == {
        "wav/a.wav": 0.25,
        "wav/b.wav": None,
    }
    table.write_text("file,speaker,arousal.mean\nwav/a.wav,s1,much\n")
    with pytest.raises(MertoolError, match=r"db\.files\.csv, row 2: arousal 'much' is not a number"):
        read_labels(database)


def test_a_table_in_parquet(database):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    expected = facts(database)
    columns = {"file": ["wav/long.wav"] * 2, "start": [0, 1_500_000_000], "end": [1_500_000_000, None]}
    nanoseconds = pyarrow.duration("ns")
    arrays = {"file": pyarrow.array(columns["file"])}
    arrays |= {name: pyarrow.array(columns[name], nanoseconds) for name in ("start", "end")}
    arrays["emotion"] = pyarrow.array(["anger", "happiness"]).dictionary_encode()
    (database / "db.segments.csv").unlink()
    parquet.write_table(pyarrow.table(arrays), database / "db.segments.parquet")
    assert facts(database) == expected


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("tables: [1]", "tables is no mapping"),
        ("name: x", "not a header of audformat with tables"),
        ("tables: {a: {", "is not YAML"),
        ("tables: !!python/object/apply:os.system [true]", "is not YAML"),
        ("tables: {lost: {columns: {emotion: {}}}}", r"names the table 'lost', but .*db\.lost\.csv is missing"),
    ],
)
def test_a_header_of_another_kind_is_refused_in_one_line(header, message, tmp_path):
    (tmp_path / "db.yaml").write_text(header)
    with pytest.raises(MertoolError, match=message) as caught:
        read_labels(tmp_path)
    assert "\n" not in str(caught.value)

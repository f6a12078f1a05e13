"""Predictions: CSV and JSON Lines, written whole and read again."""

import csv
import json

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.predictions import NumberPredictions, Predictions, read_predictions

GIVEN = Predictions(
    ("a", "测试 clip, b"),
    ("sad", "happy"),
    np.array([[0.25, 0.75], [0.625, 0.375]]),
    (("audio", "text"), ()),
    paths=("clips/a.mp4", ""),
    missing=({"video": "no_face"}, {"audio": "silent", "text": "no_text"}),
)


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_what_is_written_is_read_again(name, tmp_path):
    GIVEN.write(tmp_path / name)
    again = Predictions.read(tmp_path / name)
    assert (again.clips, again.classes, again.modalities) == (GIVEN.clips, GIVEN.classes, GIVEN.modalities)
    assert (again.paths, again.missing) == (GIVEN.paths, GIVEN.missing)
    np.testing.assert_allclose(again.probabilities, GIVEN.probabilities)
    assert again.labels == ["happy", "sad"]


def test_the_documented_columns(tmp_path):
    GIVEN.write(tmp_path / "p.csv")
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["clip", "path", "label", "confidence", "p_sad", "p_happy", "modalities", "missing"],
        ["a", "clips/a.mp4", "happy", "0.75", "0.25", "0.75", "audio+text", "video: no_face"],
        ["测试 clip, b", "", "sad", "0.625", "0.625", "0.375", "", "audio: silent; text: no_text"],
    ]


def test_one_json_object_per_line(tmp_path):
    GIVEN.write(tmp_path / "p.jsonl")
    lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {
        "clip": "a",
        "path": "clips/a.mp4",
        "label": "happy",
        "confidence": 0.75,
        "probabilities": {"sad": 0.25, "happy": 0.75},
        "modalities": ["audio", "text"],
        "missing": {"video": "no_face"},
    }
    assert len(lines) == 2


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_a_near_tie_keeps_its_label(name, tmp_path):
    """Six decimals do not tell these two apart; the label in the file does."""
    tie = Predictions(("a",), ("sad", "happy"), np.array([[0.4999999, 0.5000001]]), (("audio",),))
    tie.write(tmp_path / name)
    assert Predictions.read(tmp_path / name).labels == tie.labels == ["happy"]


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_a_file_name_that_is_not_utf8(name, tmp_path):
    odd = Predictions(("a",), ("sad", "happy"), np.array([[0.4, 0.6]]), ((),), paths=("\udcb2.mp4",))
    odd.write(tmp_path / name)
    assert "\\udcb2.mp4" in (tmp_path / name).read_text(encoding="utf-8")
    assert Predictions.read(tmp_path / name).labels == ["happy"]


def test_files_without_paths_and_reasons_are_read(tmp_path):
    (tmp_path / "p.csv").write_text("clip,label,p_a,p_b,modalities\nx,a,0.9,0.1,audio\n")
    (tmp_path / "p.jsonl").write_text('{"clip": "x", "probabilities": {"a": 0.9, "b": 0.1}, "modalities": ["audio"]}\n')
    for name in ("p.csv", "p.jsonl"):
        read = Predictions.read(tmp_path / name)
        assert (read.labels, read.paths, read.missing) == (["a"], ("",), ({},))


def test_a_missing_file(tmp_path):
    with pytest.raises(MertoolError, match="does not exist: give the predictions file of `mertool predict`"):
        Predictions.read(tmp_path / "p.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", ""),
        ("p.csv", "clip,label\na,sad\n"),
        ("p.csv", "label,p_sad,modalities\nsad,1,audio\n"),
        ("p.csv", "clip,label,p_sad,modalities\na,sad,much,audio\n"),
        ("p.csv", "clip,label,p_sad,modalities\na,sad,1\n"),
        ("p.csv", "clip,label,p_sad\na,sad,1\n"),
        ("p.jsonl", "{not json}\n"),
        ("p.jsonl", "[1]\n"),
        ("p.jsonl", '{"clip": "a"}\n'),
        ("p.jsonl", '{"clip": "a", "probabilities": 3, "modalities": []}\n'),
    ],
)
def test_a_file_that_is_none(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(MertoolError, match="is not a predictions file") as caught:
        Predictions.read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_no_prediction(tmp_path):
    (tmp_path / "p.csv").write_text("clip,label,p_sad,modalities\n")
    with pytest.raises(MertoolError, match="holds no prediction"):
        Predictions.read(tmp_path / "p.csv")


def test_a_clip_twice(tmp_path):
    (tmp_path / "p.csv").write_text("clip,label,p_sad,modalities\na,sad,1,\nb,sad,1,\na,sad,1,\n")
    with pytest.raises(MertoolError, match="clip 'a' stands twice"):
        Predictions.read(tmp_path / "p.csv")


HOSTILE = {
    "nested.jsonl": "[" * 5000,
    "nan.jsonl": '{"clip": "a", "probabilities": {"x": NaN, "y": 1}, "modalities": []}',
    "huge.jsonl": '{"clip": "a", "probabilities": {"x": ' + "9" * 5000 + ', "y": 1}, "modalities": []}',
    "twice.jsonl": '{"clip": "a", "clip": "b", "probabilities": {"x": 0, "y": 1}, "modalities": []}',
    "wide.csv": "clip," + ",".join(f"p_{n}" for n in range(3000)) + ",modalities\na," + "0," * 3000 + "audio\n",
    "nul.csv": "clip,p_x,p_y,modalities\na,0\x00,1,audio\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_predictions_are_one_line(name, tmp_path):
    (tmp_path / name).write_text(HOSTILE[name])
    with pytest.raises(MertoolError) as caught:
        Predictions.read(tmp_path / name)
    assert "\n" not in str(caught.value)


NUMBERS = NumberPredictions(
    ("a", "b"),
    "valence",
    np.array([-1.25, 0.1]),
    (("audio",), ()),
    paths=("a.mp4", ""),
    missing=({}, {"audio": "silent"}),
)


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_numbers_are_read_again(name, tmp_path):
    NUMBERS.write(tmp_path / name)
    again = read_predictions(tmp_path / name)
    assert isinstance(again, NumberPredictions)
    assert (again.clips, again.name, again.paths) == (NUMBERS.clips, "valence", NUMBERS.paths)
    assert (again.modalities, again.missing) == (NUMBERS.modalities, NUMBERS.missing)
    np.testing.assert_allclose(again.numbers, NUMBERS.numbers)


def test_the_documented_columns_of_numbers(tmp_path):
    NUMBERS.write(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text().splitlines() == [
        "clip,path,valence,modalities,missing",
        "a,a.mp4,-1.25,audio,",
        "b,,0.1,,audio: silent",
    ]


def test_two_columns_are_numbers_of_another_program(tmp_path):
    (tmp_path / "p.csv").write_text("clip,arousal,valence\na,1,-2\n")
    assert read_predictions(tmp_path / "p.csv").numbers.tolist() == [-2.0]  # the first of NUMBERS
    assert read_predictions(tmp_path / "p.csv", "arousal").numbers.tolist() == [1.0]


@pytest.mark.parametrize("value", ["nan", "inf", "1e9"])
def test_numbers_that_are_not_finite(value, tmp_path):
    (tmp_path / "p.csv").write_text(f"clip,valence\nb,1\na,{value}\n")
    with pytest.raises(MertoolError, match="the valence of clip 'a' is not a number from -1e"):
        read_predictions(tmp_path / "p.csv")


@pytest.mark.parametrize(
    "content", ["clip,valence\na,\n", "clip,valence\na,much\n", "clip,path,split,valence\na,,,1\n"]
)
def test_a_file_without_numbers(content, tmp_path):
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(MertoolError, match="is not a predictions file"):
        read_predictions(tmp_path / "p.csv")


def test_a_file_of_another_target(tmp_path):
    NUMBERS.write(tmp_path / "p.csv")
    with pytest.raises(MertoolError, match="holds predictions of valence, not of arousal: give --target valence"):
        read_predictions(tmp_path / "p.csv", "arousal")
    with pytest.raises(MertoolError, match="holds numbers of valence, where classes are needed"):
        Predictions.read(tmp_path / "p.csv")

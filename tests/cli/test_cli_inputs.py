"""Commands never write over their inputs, and check their inputs before they use them."""

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.predictions import Predictions

ROW = "clip,label,p_sad,p_happy,modalities\n"


@pytest.fixture
def scored(tmp_path):
    Predictions(("a", "b"), ("sad", "happy"), np.array([[0.9, 0.1], [0.2, 0.8]]), ((), ())).write(tmp_path / "p.csv")
    (tmp_path / "truth.csv").write_text("clip,path,label\na,a.wav,sad\nb,b.wav,happy\n")
    return tmp_path


@pytest.mark.parametrize("name", ["truth.csv", "p.csv"])
def test_evaluate_does_not_write_over_its_inputs(name, scored, invoke):
    before = (scored / name).read_bytes()
    result = invoke("evaluate", scored / "p.csv", "--labels", scored / "truth.csv", "-o", scored / name)
    assert isinstance(result.exception, MertoolError)
    assert "it is an input of this command" in str(result.exception)
    assert (scored / name).read_bytes() == before


def test_overwrite_leaves_a_file_that_is_no_store_alone(demo, tiny_encoders, tmp_path, invoke):
    diary = tmp_path / "diary.txt"
    diary.write_text("dear diary")
    command_options = ["--encoder", tiny_encoders["bert"], "--overwrite"]
    result = invoke("extract", "text", demo / "manifest.csv", "-o", diary, *command_options)
    assert "not a feature store" in str(result.exception)
    assert diary.read_text() == "dear diary"


@pytest.mark.parametrize("row", ["a,sad,nan,0.1,\n", "a,sad,7,0.1,\n", "a,sad,-0.1,0.1,\n"])
def test_probabilities_are_between_zero_and_one(row, tmp_path):
    (tmp_path / "p.csv").write_text(ROW + row)
    with pytest.raises(MertoolError, match="the probabilities of clip 'a' are not all between 0 and 1"):
        Predictions.read(tmp_path / "p.csv")


def test_the_next_command_is_quoted(demo, tmp_path, call):
    out = tmp_path / "my clips.csv"
    assert (
        f"next: mertool extract audio '{out}' -o features/audio.h5"
        in call("manifest", demo / "clips", "-o", out).stdout
    )

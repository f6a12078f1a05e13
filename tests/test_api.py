"""The stages as functions: plain paths, options by name, results in memory, scripts without a main guard."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mertool
from mertool.errors import MertoolError
from mertool.predictions import Predictions

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def text_bundle(make_bundle, text_store, tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("api") / "run", [text_store])


@pytest.fixture
def folder(tmp_path, workspace, demo_rows, write_manifest, tiny_encoders, demo):
    """The folder that the page of examples works in."""
    (tmp_path / "encoders").mkdir()
    for name in ("hubert", "bert"):
        (tmp_path / "encoders" / name).symlink_to(tiny_encoders[name])
    write_manifest(tmp_path / "clips.csv", [demo_rows[clip] for clip in workspace.clips if clip in demo_rows])
    (tmp_path / "new-clips").mkdir()
    (tmp_path / "new-clips" / "a.mp4").symlink_to(demo_rows["spk01_003"]["path"])
    return tmp_path


def test_the_examples_of_the_page(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    exec(compile(EXAMPLES, "docs/python.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("{'value': ")
    assert re.fullmatch(r"a (\w+) new-clips/a\.mp4", printed[1])
    assert 0 <= float(printed[2]) <= 1


@pytest.mark.slow
def test_a_script_without_a_main_guard(folder):
    script = folder / "script.py"
    script.write_text(f"print('the script runs')\n{EXAMPLES}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the script runs") == 1


def test_predictions_are_those_of_the_command(text_bundle, workspace, call, tmp_path):
    call("predict", text_bundle, workspace.manifest, "-o", tmp_path / "p.csv", "-q", "--max-failed", 1)
    with pytest.warns(UserWarning, match="clips were not predicted: "):
        predicted = mertool.predict(str(text_bundle), workspace.manifest)
    expected = Predictions.read(tmp_path / "p.csv")
    assert (predicted.clips, predicted.labels, predicted.paths) == (expected.clips, expected.labels, expected.paths)
    np.testing.assert_allclose(predicted.probabilities, expected.probabilities, atol=1e-6)


def test_predictions_are_kept_where_an_output_is_given(text_bundle, workspace, tmp_path):
    with pytest.warns(UserWarning):
        mertool.predict(text_bundle, [workspace.manifest], tmp_path / "p.jsonl")
    assert (tmp_path / "p.jsonl").exists()
    assert (tmp_path / "p.jsonl.features").is_dir()


def test_no_clip_that_can_be_predicted(text_bundle, demo_rows):
    """The bundle reads texts, and a media file has none."""
    with pytest.raises(MertoolError, match=r"no clip could be predicted: \w+ \(text: no_text\)"):
        mertool.predict(text_bundle, demo_rows["spk07_001"]["path"])


def test_an_unknown_option_is_named(workspace):
    with pytest.raises(TypeError, match="unknown option 'encodr': did you mean 'encoder'\\? valid: modality, encoder"):
        mertool.extract(workspace.manifest, "a.h5", "audio", encodr="hubert-base")


def test_an_option_out_of_range_is_an_error_of_the_user(workspace):
    with pytest.raises(MertoolError, match="--seeds 0: give at least 1"):
        mertool.fuse(["a.h5"], workspace.manifest, "run", seeds=0)


def test_a_stage_is_a_module_and_a_function():
    from inspect import signature

    from mertool import predict as stage

    assert mertool.predict is stage
    assert stage.PredictResult.__module__ == "mertool.predict"
    assert list(signature(mertool.predict).parameters) == ["bundle", "sources", "output", "options"]
    assert "predict" in dir(mertool)
    with pytest.raises(AttributeError, match="no attribute 'predit'"):
        _ = mertool.predit


def test_type_checkers_find_the_types():
    assert (ROOT / "mertool" / "py.typed").exists()

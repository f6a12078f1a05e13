"""`mertool probe-layers`: which layers carry emotion."""

import json

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.manifest import EMOTIONS
from mertool.probe_layers import best_window


@pytest.fixture(scope="module")
def planted(tmp_path_factory, make_store, write_manifest):
    """Ninety clips of nine speakers whose label is written into layers 4 and 5 of 9, and nowhere else."""
    folder, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(0)
    labels = rng.integers(0, 6, 90)
    centres = rng.normal(0, 1, (6, 12))
    values = rng.normal(0, 1, (90, 9, 12)).astype(np.float32)
    values[:, 4:6] = 2 * centres[labels][:, None] + 0.5 * values[:, 4:6]
    rows = [
        {"clip": f"c{n}", "path": "x.mp4", "label": EMOTIONS[label], "speaker": f"s{n % 9}", "split": "train"}
        for n, label in enumerate(labels)
    ]
    store = make_store(folder / "audio.h5", "audio", {f"c{n}": value for n, value in enumerate(values)})
    return store, write_manifest(folder / "clips.csv", rows)


@pytest.fixture(scope="module")
def run(planted, invoke, tmp_path_factory):
    """The run's folder and the JSON object of the command."""
    folder = tmp_path_factory.mktemp("probe") / "run"
    result = invoke("probe-layers", planted[0], "-m", planted[1], "-o", folder, "--width", 2, "--folds", 3, "--json")
    assert result.exit_code == 0, result.exception
    return folder, json.loads(result.stdout)


def test_the_planted_layers_are_recommended(run):
    folder, result = run
    assert result["window"]["layers"] == "4-5"
    assert json.loads((folder / "run.json").read_text())["window"] == [4, 5]


def test_other_layers_and_shuffled_labels_are_near_chance(run):
    layers = run[1]["layers"]
    assert set(layers) == {str(n) for n in range(9)}
    for layer in "0123678":
        assert layers[layer]["accuracy"]["value"] < 0.4
    assert run[1]["chance"]["accuracy"]["value"] < 0.4


def test_the_window_is_scored_on_clips_that_did_not_choose_it(run):
    assert run[1]["layers"]["4"]["waf"]["value"] > 0.9
    metrics = json.loads((run[0] / "metrics.json").read_text())
    assert metrics["window"]["layers"] == "4-5"
    assert 0.9 < metrics["window"]["waf"]["value"] <= 1


def test_folds_are_stored_and_speaker_disjoint(run):
    folds = json.loads((run[0] / "run.json").read_text())["folds"]
    assert set(folds) == {f"c{n}" for n in range(90)}
    assert set(folds.values()) == {0, 1, 2}
    for speaker in range(9):
        assert len({folds[f"c{n}"] for n in range(speaker, 90, 9)}) == 1


def test_the_files_of_the_run(run):
    assert {file.name for file in run[0].iterdir()} == {"run.json", "metrics.json", "layers.png", "layers.svg"}
    assert (run[0] / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (run[0] / "layers.svg").read_text()


def test_a_second_run_is_reused_and_another_seed_is_not(run, planted, invoke):
    given = ["probe-layers", planted[0], "-m", planted[1], "-o", run[0], "--width", 2, "--folds", 3, "--json"]
    before = (run[0] / "run.json").stat().st_mtime_ns
    again = json.loads(invoke(*given).stdout)
    assert (again["reused"], again["layers"]) == (True, run[1]["layers"])
    assert (run[0] / "run.json").stat().st_mtime_ns == before


def test_other_options_replace_the_run(planted, invoke, tmp_path):
    given = ["probe-layers", planted[0], "-m", planted[1], "-o", tmp_path / "run", "--folds", 3, "--json"]
    first = json.loads(invoke(*given, "--width", 1).stdout)
    second = json.loads(invoke(*given, "--width", 3).stdout)
    assert (first["reused"], second["reused"]) == (False, False)
    assert len(first["window"]["layers"]) == 1
    assert second["window"]["layers"] in ("3-5", "4-6")
    assert json.loads(invoke(*given, "--width", 3, "--overwrite").stdout)["reused"] is False


def test_a_quarter_of_the_layers_is_the_default_width(planted, invoke, tmp_path):
    result = invoke("probe-layers", planted[0], "-m", planted[1], "-o", tmp_path / "run", "--folds", 3, "--json")
    assert json.loads(result.stdout)["window"]["layers"] == "4-5"


def test_the_window_is_never_the_embedding():
    assert best_window([0, 1, 2, 3], np.array([0.9, 0.2, 0.1, 0.3]), 1) == (3, 3)
    assert best_window([0, 1, 2, 3], np.array([0.9, 0.2, 0.1, 0.3]), 2) == (2, 3)
    assert best_window([0, 1, 2, 3], np.array([0.9, 0.2, 0.1, 0.3]), 9) == (1, 3)


def fails(invoke, *args):
    result = invoke("probe-layers", *args)
    assert isinstance(result.exception, MertoolError), result.exception
    return str(result.exception)


def test_a_frame_store_is_refused(invoke, frames_store, workspace, tmp_path):
    message = fails(invoke, frames_store, "-m", workspace.manifest, "-o", tmp_path / "run")
    assert "holds frames: probe-layers reads a pooled store" in message


def test_labels_for_clips_that_are_not_in_the_store(invoke, planted, write_manifest, tmp_path):
    rows = [{"clip": f"other{n}", "path": "x.mp4", "label": EMOTIONS[n % 3]} for n in range(12)]
    message = fails(invoke, planted[0], "-m", write_manifest(tmp_path / "m.csv", rows), "-o", tmp_path / "run")
    assert "of 12 labelled clips none in" in message


def test_a_clip_that_was_never_extracted(invoke, planted, tmp_path):
    text = planted[1].read_text() + "extra,x.mp4,happy,,s1,train,,\n"
    manifest = tmp_path / "m.csv"
    manifest.write_text(text)
    message = fails(invoke, planted[0], "-m", manifest, "-o", tmp_path / "run")
    assert "1 not in" in message
    assert "extra" in message


def test_one_class(invoke, planted, tmp_path, write_manifest):
    rows = [{"clip": f"c{n}", "path": "x.mp4", "label": "happy"} for n in range(20)]
    message = fails(invoke, planted[0], "-m", write_manifest(tmp_path / "m.csv", rows), "-o", tmp_path / "run")
    assert "all 20 labelled clips" in message
    assert "'happy'" in message


def test_clips_that_failed_are_left_out(probe_run, clip_names):
    metrics = json.loads((probe_run / "metrics.json").read_text())
    assert metrics["clips"] == len(clip_names.labelled) - 1  # one has no sound
    assert clip_names.no_sound not in json.loads((probe_run / "run.json").read_text())["folds"]


def test_the_report_for_people(invoke, planted, tmp_path):
    text = invoke("probe-layers", planted[0], "-m", planted[1], "-o", tmp_path / "run", "--folds", 3).stdout
    assert "recommended window: layers 4-5" in text
    assert "chance (shuffled labels)" in text
    assert f"next: mertool finetune {planted[1]} --probe {tmp_path / 'run'}" in text

"""Subtracting the mean offset over the training clips of each adapter neither leaks labels nor lowers scores."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "bench"))

import mean_shift


def mean_scores(*, informative):
    """Return the mean UAR on held-out clips by kind of features, over corpora that have a fold of nearly one class."""
    settings = {"informative": informative, "memorised": "little"}
    runs = [mean_shift.run("one class", **settings, seed=seed)[1] for seed in range(3)]
    return {name: np.mean([scores[name][0] for scores in runs]) for name in mean_shift.FEATURES}


def test_an_offset_over_training_clips_leaks_no_labels():
    """Features that say nothing of the label stay at chance, unless adapters see the labels of their own clips."""
    scores = mean_scores(informative=False)
    assert scores["leak"] > 29
    assert scores["training"] < 26
    assert scores["training"] < scores["oracle"] + 2


def test_an_offset_over_training_clips_lowers_no_score():
    scores = mean_scores(informative=True)
    assert scores["training"] > scores["none"] + 4
    assert scores["training"] > scores["shifted"] + 10
    assert scores["training"] > scores["oracle"] - 2


@pytest.mark.parametrize("name", ["training", "held-out", "oracle"])
def test_every_measured_offset_contains_the_shift(name):
    clips, new = mean_shift.make_clips("unequal", informative=True, seed=0)
    adapters = mean_shift.Adapters(0)
    adapters.train_on(clips, 2)
    shifts = np.random.default_rng(0).normal(0, 1, (mean_shift.N_FOLDS + 1, mean_shift.N_CHANNELS))
    for before, after in zip(
        mean_shift.adapted_features(clips, new, adapters, 0 * shifts)[name],
        mean_shift.adapted_features(clips, new, adapters, shifts)[name],
        strict=True,
    ):
        np.testing.assert_allclose(before, after, atol=1e-9)


def test_offsets_are_means_over_their_clips():
    clips, _ = mean_shift.make_clips("one class", informative=True, seed=0)
    random = np.random.default_rng(0)
    change = random.normal(0, 1, (mean_shift.N_FOLDS + 1, mean_shift.N_CLIPS, mean_shift.N_CHANNELS))
    offsets = mean_shift.measure_offsets(change, change[:, :9], clips)
    seen, held_out = clips.fold_of != 1, clips.fold_of == 1
    expected = {
        "none": np.zeros(mean_shift.N_CHANNELS),
        "training": change[1, seen].mean(0),
        "held-out": change[1, held_out].mean(0),
        "oracle": change[1, :9].mean(0),
    }
    assert offsets.keys() == expected.keys()
    for name, offset in expected.items():
        np.testing.assert_allclose(offsets[name][1], offset, atol=1e-9)
    np.testing.assert_allclose(offsets["training"][-1], change[-1].mean(0), atol=1e-9)  # `final`


def test_the_benchmark_prints_its_tables(monkeypatch, tmp_path, capsys):
    output = tmp_path / "mean_shift.json"
    for name, value in {"N_CLIPS": 60, "N_NEW": 40, "N_CHANNELS": 4, "STEPS": {"little": 1}}.items():
        monkeypatch.setattr(mean_shift, name, value)
    monkeypatch.setattr(sys, "argv", ["mean_shift.py", "--repetitions", "2", "--output", str(output)])
    mean_shift.main()
    rows = json.loads(output.read_text(encoding="utf-8"))
    assert len(rows) == 2 * len(mean_shift.FOLDS)
    for row in rows:
        for part in ("held_out", "new"):
            assert row[part].keys() == mean_shift.FEATURES.keys()
            assert all(0 <= value <= 100 for values in row[part].values() for value in values)
    table = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("| equal", "| unequal", "| one"))
    ]
    assert len(table) == 3 * len(mean_shift.FOLDS)
    assert all(line.count("±") == len(mean_shift.FEATURES) + 1 for line in table)

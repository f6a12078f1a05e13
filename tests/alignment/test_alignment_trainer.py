"""The loop of `align`: learning, early stopping, exact resume, several devices."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mertool.align import align
from mertool.alignment import losses
from mertool.alignment import trainer as training
from mertool.alignment.data import Frames
from mertool.alignment.false_negatives import FalseNegativeFilter
from mertool.alignment.targets import split
from mertool.alignment.trainer import Pairs, Schedule
from mertool.encoders.aligner import Aligner
from mertool.errors import MertoolError
from mertool.learning.accelerator import make_accelerator
from mertool.learning.checkpoint import Checkpoint
from mertool.options.align import AlignOptions
from mertool.store import FeatureStore

CLIPS = 60


@pytest.fixture(scope="module")
def stored(tmp_path_factory, make_store):
    """Frames and acoustic vectors that share a hidden cause."""
    random = np.random.default_rng(0)
    to_sound, to_sight = random.normal(0, 1, (3, 5)), random.normal(0, 1, (3, 6))
    cause = random.normal(0, 1, (CLIPS, 3))
    frames = {
        f"c{n}": (one @ to_sight + 0.1 * random.normal(0, 1, (random.integers(2, 7), 6))).astype(np.float32)
        for n, one in enumerate(cause)
    }
    return make_store(tmp_path_factory.mktemp("stored") / "f.h5", "frames", frames), (cause @ to_sound)


@pytest.fixture
def pairs(stored):
    anchors, parts = stored[1].astype(np.float16), split(CLIPS, 0)
    with FeatureStore(stored[0]) as store:
        frames = Frames(store, np.arange(CLIPS), 64)
        yield Pairs(frames, anchors, parts, FalseNegativeFilter("none", anchors, parts.train, 0))


@pytest.fixture
def train(pairs, tmp_path):
    """A function (schedule, progress, every) that trains, and returns aligner, loss and history."""

    def run(schedule, progress=lambda step, total: None, every=None, loss="infonce"):
        torch.manual_seed(0)
        aligner, objective = Aligner(6, 16, 1, 5), losses.load(loss).build()
        accelerator = make_accelerator(torch.device("cpu"), torch.float32)
        saved = Checkpoint(tmp_path / "c.safetensors", interval=every)
        history = training.train(
            aligner,
            objective,
            pairs,
            schedule=schedule,
            accelerator=accelerator,
            checkpoint=saved,
            progress=progress,
        )
        return SimpleNamespace(aligner=aligner, objective=objective, history=history)

    return run


def weights(found):
    return {**found.aligner.state_dict(), **found.objective.state_dict()}


@pytest.mark.parametrize("loss", ["infonce", "mse"])
def test_it_learns(train, loss):
    history = train(Schedule(epochs=25, batch=16, learning_rate=3e-3), loss=loss).history
    assert min(history.development_loss) < 0.7 * history.development_loss[0]
    assert len(history.loss) == len(history.development_loss)


def test_frames_are_standardised_by_the_training_clips(train, pairs):
    aligner = train(Schedule(epochs=1)).aligner
    seen = np.concatenate([pairs.frames.read(np.array([row]))[0] for row in pairs.parts.train])
    np.testing.assert_allclose(aligner.mean, seen.mean(0), atol=1e-5)
    np.testing.assert_allclose(aligner.std, seen.std(0), rtol=1e-4)


def test_it_stops_early_and_keeps_the_best_epoch(train, monkeypatch):
    """What is left is what it was after two of six epochs, also of the temperature."""
    given = [5.0, 3.0, 4.0, 4.0, 4.0, 1.0]
    kept = []

    def development(both, *_):
        kept.append({name: value.clone() for name, value in both.state_dict().items()})
        return given[len(kept) - 1]

    monkeypatch.setattr(training, "_development_loss", development)
    found = train(Schedule(epochs=6, batch=16, patience=3))
    assert found.history.development_loss == given[:5]
    assert found.history.best_epoch == 2
    best = {**found.aligner.state_dict(prefix="aligner."), **found.objective.state_dict(prefix="loss.")}
    assert best.keys() == kept[1].keys()
    assert all(torch.equal(best[name], kept[1][name]) for name in best)


@pytest.mark.parametrize("killed_at", [1, 3, 4, 7])
def test_a_killed_training_goes_on_exactly(killed_at, train):
    """Three steps an epoch; several chunks a step, so that cached gradients and dropout take part."""
    schedule = Schedule(epochs=3, batch=16, at_once=20)
    whole = train(schedule)

    def die(step, total):
        if step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(schedule, die, every=0.0)
    steps = []
    again = train(schedule, lambda step, total: steps.append(step), every=1e9)
    assert steps[0] == killed_at  # the step that was killed had not been saved yet
    assert again.history == whole.history
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())


def test_a_loss_that_is_no_number_ends_in_one_line(train, pairs):
    pairs.anchors[int(pairs.parts.train[0])] = np.inf
    with pytest.raises(MertoolError, match="in epoch 1: give a smaller --learning-rate"):
        train(Schedule(epochs=2))


def test_epochs_and_batches_follow_the_clips():
    assert Schedule().plan(42) == (100, 1)
    assert Schedule().plan(1600) == (100, 16)
    assert Schedule(batch=400).plan(1600) == (100, 4)
    epochs, per_epoch = Schedule().plan(111_595)
    assert per_epoch == 109
    assert 2900 < epochs * per_epoch < 3100
    assert Schedule(epochs=7).plan(111_595) == (7, 109)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 1}, {"patience": 0}, {"learning_rate": 1.5}])
def test_wrong_settings(wrong):
    with pytest.raises(MertoolError):
        Schedule(**wrong)


OPTIONS = AlignOptions(width=16, blocks=1, dropout=0.0, epochs=3, batch=19, device="cpu")
SCRIPT = f"""
import sys
from pathlib import Path
from mertool.align import align
from mertool.options.align import AlignOptions
audio, video, folder = map(Path, sys.argv[1:])
align(audio, video, folder / "run", folder / "a.h5", None, {OPTIONS}, lambda *_: None)
"""


def test_two_processes_train_what_one_does(stored, make_store, tmp_path):
    """By torchrun on two CPU processes, against this one; without dropout; odd batches leave one of them with less."""
    sound = {f"c{n}": one[None].astype(np.float32) for n, one in enumerate(stored[1])}
    audio = make_store(tmp_path / "audio.h5", "audio", sound)
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone"]
    command = [*run, tmp_path / "script.py", audio, stored[0], tmp_path / "two"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    align(audio, stored[0], tmp_path / "one" / "run", tmp_path / "one" / "a.h5", None, OPTIONS, lambda *_: None)
    results, tensors = [], []
    for folder in (tmp_path / "one", tmp_path / "two"):
        results.append(json.loads((folder / "run" / "metrics.json").read_text()))
        tensors.append(Aligner.load(folder / "run").state_dict())
        with FeatureStore(folder / "a.h5") as store:
            assert len(store) == CLIPS
    for name in ("loss", "development_loss"):
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-4)
    assert max(float((value - tensors[1][name]).abs().max()) for name, value in tensors[0].items()) < 1e-4

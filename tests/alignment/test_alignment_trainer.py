"""The training loop of `align`: learning, early stopping, exact resume, several processes."""

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
from mertool.alignment import losses, trainer
from mertool.alignment.data import AlignmentData, FrameStream
from mertool.alignment.false_negatives import FalseNegativeFilter
from mertool.alignment.targets import split_clips
from mertool.alignment.trainer import plan_epochs
from mertool.encoders.aligner import Aligner
from mertool.errors import MertoolError
from mertool.learning.accelerator import make_accelerator
from mertool.learning.checkpoint import Checkpoint
from mertool.options.align import AlignOptions
from mertool.store import FeatureStore

CLIPS = 60


@pytest.fixture(scope="module")
def stored(tmp_path_factory, make_store):
    """A frame store and acoustic vectors that share a hidden cause."""
    random = np.random.default_rng(0)
    to_audio, to_video = random.normal(0, 1, (3, 5)), random.normal(0, 1, (3, 6))
    causes = random.normal(0, 1, (CLIPS, 3))
    frames = {
        f"c{n}": (cause @ to_video + 0.1 * random.normal(0, 1, (random.integers(2, 7), 6))).astype(np.float32)
        for n, cause in enumerate(causes)
    }
    return make_store(tmp_path_factory.mktemp("stored") / "f.h5", "frames", frames), (causes @ to_audio)


@pytest.fixture
def data(stored):
    with FeatureStore(stored[0]) as store:
        yield AlignmentData(
            stream=FrameStream(store, np.arange(CLIPS), 64),
            targets=stored[1].astype(np.float16),
            split=split_clips(np.arange(CLIPS), 0),
            false_negatives=FalseNegativeFilter(kind="none"),
        )


@pytest.fixture
def train(data, tmp_path):
    """A function that trains with options, and returns aligner, loss function and history."""

    def run(progress=lambda step, total: None, *, interval=None, max_padded_frames=None, **options):
        torch.manual_seed(0)
        options = AlignOptions(**options)
        aligner = Aligner(channels=6, width=16, blocks=1, acoustic=5)
        loss_function = losses.load(options.loss).build()
        history = trainer.train(
            aligner,
            loss_function,
            data,
            options=options,
            accelerator=make_accelerator(torch.device("cpu"), torch.float32),
            checkpoint=Checkpoint(tmp_path / "c.safetensors", interval=interval),
            progress=progress,
            max_padded_frames=max_padded_frames,
        )
        return SimpleNamespace(aligner=aligner, loss_function=loss_function, history=history)

    return run


def weights(trained):
    return {
        **trained.aligner.state_dict(prefix="aligner."),
        **trained.loss_function.state_dict(prefix="loss."),
    }


@pytest.mark.parametrize("loss", ["infonce", "mse"])
def test_training_lowers_the_development_loss(train, loss):
    history = train(epochs=25, batch=16, learning_rate=3e-3, loss=loss).history
    assert min(history.development_loss) < 0.7 * history.development_loss[0]
    assert len(history.loss) == len(history.development_loss)


def test_frames_are_standardised_by_the_training_clips(train, data):
    aligner = train(epochs=1).aligner
    frames = np.concatenate([data.stream.read(np.array([row]))[0] for row in data.split.train])
    np.testing.assert_allclose(aligner.mean, frames.mean(0), atol=1e-5)
    np.testing.assert_allclose(aligner.std, frames.std(0), rtol=1e-4)


def test_training_stops_early_with_the_weights_of_the_best_epoch(train, monkeypatch):
    """The weights are those after two of six epochs, the temperature of the loss included."""
    development_losses = [5.0, 3.0, 4.0, 4.0, 4.0, 1.0]
    by_epoch = []

    def development_loss(aligner, loss_function, *_, **__):
        trained = SimpleNamespace(aligner=aligner, loss_function=loss_function)
        by_epoch.append({name: value.clone() for name, value in weights(trained).items()})
        return development_losses[len(by_epoch) - 1]

    monkeypatch.setattr(trainer, "_development_loss", development_loss)
    trained = train(epochs=6, batch=16, patience=3)
    assert trained.history.development_loss == development_losses[:5]
    assert trained.history.best_epoch == 2
    assert weights(trained).keys() == by_epoch[1].keys()
    assert all(torch.equal(value, by_epoch[1][name]) for name, value in weights(trained).items())


@pytest.mark.parametrize("killed_at", [1, 3, 4, 7])
def test_resume_is_exact(killed_at, train, tmp_path):
    """Three steps an epoch; several chunks a step, so that cached gradients and dropout take part."""
    options = {"epochs": 3, "batch": 16, "max_padded_frames": 20}
    undisturbed = train(**options)
    (tmp_path / "c.safetensors").unlink()

    def die(step, total):
        if step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(die, interval=0.0, **options)
    steps = []
    resumed = train(lambda step, total: steps.append(step), interval=1e9, **options)
    assert steps[0] == killed_at  # the step that was killed had not been saved yet
    assert resumed.history == undisturbed.history
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(undisturbed).items())


def test_nan_aborts_training_with_one_line(train, data):
    data.targets[int(data.split.train[0])] = np.inf
    with pytest.raises(MertoolError, match="in epoch 1: give a smaller --learning-rate"):
        train(epochs=2)


def test_epochs_and_batches_follow_the_number_of_clips():
    assert plan_epochs(42, AlignOptions()) == (100, 1)
    assert plan_epochs(1600, AlignOptions()) == (100, 16)
    assert plan_epochs(1600, AlignOptions(batch=400)) == (100, 4)
    epochs, epoch_steps = plan_epochs(111_595, AlignOptions())
    assert epoch_steps == 109
    assert 2900 < epochs * epoch_steps < 3100
    assert plan_epochs(111_595, AlignOptions(epochs=7)) == (7, 109)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 1}, {"patience": 0}, {"learning_rate": 1.5}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(MertoolError):
        AlignOptions(**wrong)


OPTIONS = AlignOptions(width=16, blocks=1, dropout=0.0, epochs=3, batch=19, device="cpu")
SCRIPT = f"""
import sys
from pathlib import Path
from mertool.align import align
from mertool.options.align import AlignOptions
audio, video, folder = map(Path, sys.argv[1:])
align(audio, video, folder / "run", aligned=folder / "a.h5", manifest=None, options={OPTIONS}, progress=lambda *_: None)
"""


@pytest.mark.slow
def test_torchrun_of_two_processes_trains_what_one_does(stored, make_store, tmp_path):
    """Two CPU processes against this one; without dropout; odd batches leave one of them with fewer clips."""
    audio_values = {f"c{n}": vector[None].astype(np.float32) for n, vector in enumerate(stored[1])}
    audio = make_store(tmp_path / "audio.h5", "audio", audio_values)
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone"]
    command = [*torchrun, tmp_path / "script.py", audio, stored[0], tmp_path / "two"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    align(
        audio,
        stored[0],
        tmp_path / "one" / "run",
        aligned=tmp_path / "one" / "a.h5",
        manifest=None,
        options=OPTIONS,
        progress=lambda *_: None,
    )
    metrics, tensors = [], []
    for folder in (tmp_path / "one", tmp_path / "two"):
        metrics.append(json.loads((folder / "run" / "metrics.json").read_text()))
        tensors.append(Aligner.load(folder / "run").state_dict())
        with FeatureStore(folder / "a.h5") as store:
            assert len(store) == CLIPS
    for name in ("loss", "development_loss"):
        np.testing.assert_allclose(metrics[0][name], metrics[1][name], rtol=1e-4)
    # A softmax does not see a constant added to all its inputs, so the gradient of these biases is rounding noise,
    # which Adam scales up to whole steps.
    without_gradient = {"attention.bias", "temporal.layers.0.self_attn.in_proj_bias"}
    for name in tensors[0].keys() - without_gradient:
        assert float((tensors[0][name] - tensors[1][name]).abs().max()) < 1e-6, name

"""Training of adapters: batches, losses, learning rates, early stopping, and the epoch that is restored."""

import numpy as np
import pytest
import torch

from mertool.adapters import inputs, trainer
from mertool.adapters.cross_validation import AdapterSplit
from mertool.adapters.data import AdaptationData
from mertool.adapters.inputs import epoch_batches
from mertool.adapters.setup import AdapterConfig, new_adapter, prepare
from mertool.errors import MertoolError
from mertool.learning.accelerator import make_accelerator
from mertool.learning.labelled_clips import IGNORE_INDEX

N_CLIPS = 16
SPLIT = AdapterSplit(name="fold0", train=np.arange(8), development=np.arange(8, 12), held_out=np.arange(12, 14))
LENGTHS = np.random.default_rng(1).integers(5, 50, 40)


@pytest.fixture
def make_setup(load_tiny):
    """A function (options of AdapterConfig) that prepares 14 labelled and 2 unlabelled clips, adapted in layers 2-3."""

    def make(**options):
        rng = np.random.default_rng(0)
        encoder = load_tiny("hubert", "audio")
        frames = [rng.normal(0, 1, (5 + row % 4, encoder.channels)).astype(np.float32) for row in range(N_CLIPS)]
        labels = np.array([row % 2 for row in range(N_CLIPS)])
        for row, clip in enumerate(frames):
            clip += labels[row]
        labels[14:] = IGNORE_INDEX
        data = AdaptationData(
            names=tuple(f"c{row}" for row in range(N_CLIPS)),
            inputs={1: [torch.from_numpy(clip) for clip in frames]},
            reconstruction_frames=frames,
            skipped={},
        )
        defaults = {"method": "bottleneck", "size": 4, "layers": (2, 3), "mask_weight": 0.0, "batch_size": 4}
        return prepare(
            encoder,
            data,
            labels,
            n_classes=2,
            config=AdapterConfig(**defaults | options),
            from_frontend=False,
            accelerator=make_accelerator(torch.device("cpu"), torch.float32),
        )

    return make


def weights(adapter):
    return {name: value.detach().clone() for name, value in adapter.trainable_parameters.items()}


def use_development_losses(monkeypatch, losses):
    """Make the trainer find these losses of the development clips, the first before training."""
    iterator = iter(losses)
    monkeypatch.setattr(trainer, "_development_loss", lambda *_: next(iterator))


# ---------------------------------------------------------------- batches


def test_an_epoch_has_every_clip_once_in_batches_of_similar_length():
    lengths = np.random.default_rng(0).integers(5, 500, 400)
    batches = epoch_batches(np.arange(400), np.arange(0), lengths, batch_size=8, seed=(0, 0))
    assert sorted(np.concatenate(batches)) == list(range(400))
    assert {len(batch) for batch in batches} == {8}
    range_of_lengths = np.mean([np.ptp(lengths[batch]) for batch in batches])
    assert range_of_lengths < 0.2 * np.ptp(lengths)
    # The batches themselves are not in order of length.
    assert np.corrcoef([lengths[batch].mean() for batch in batches], range(50))[0, 1] < 0.5


def test_batches_depend_on_epoch_and_seed_only():
    def order(seed, epoch):
        batches = epoch_batches(np.arange(40), np.arange(0), LENGTHS, batch_size=8, seed=(seed, epoch))
        return np.concatenate(batches).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_unlabelled_clips_are_spread_over_the_batches():
    labelled, unlabelled, lengths = np.arange(20), np.arange(20, 100), np.full(100, 9)

    def batches_of(epoch):
        return epoch_batches(labelled, unlabelled, lengths, batch_size=4, seed=(0, epoch))

    assert [int((batch < 20).sum()) for batch in batches_of(0)] == [4] * 5
    assert [int((batch >= 20).sum()) for batch in batches_of(0)] == [4] * 5
    drawn = {int(row) for epoch in range(40) for batch in batches_of(epoch) for row in batch}
    assert drawn == set(range(100))


# ---------------------------------------------------------------- the step


@pytest.mark.parametrize("mask_weight", [0.0, 0.5])
def test_the_gradient_does_not_depend_on_the_division_into_forward_passes(mask_weight, make_setup, monkeypatch):
    setup = make_setup(mask_weight=mask_weight, class_weights="balanced")
    batch = np.array([0, 3, 5, 6, 14, 15])
    steps = []
    for max_frames in (1, 20, 10_000):
        monkeypatch.setattr(inputs, "MAX_FRAMES_CPU", max_frames)
        torch.manual_seed(0)
        adapter = new_adapter(setup, SPLIT)
        optimizer = torch.optim.SGD(adapter.trainable_parameters.values(), lr=0.1)
        losses = trainer._training_step(setup, adapter, adapter.model, optimizer=optimizer, batch=batch, epoch=0)
        steps.append((losses, weights(adapter)))
    assert len(setup.inputs.length_batches(batch)) == 1
    for losses, weights_after in steps[1:]:
        np.testing.assert_allclose(losses, steps[0][0], rtol=1e-5)
        for name, value in weights_after.items():
            torch.testing.assert_close(value, steps[0][1][name], atol=1e-6, rtol=1e-5)


def test_an_unlabelled_clip_has_no_label_loss(make_setup):
    setup = make_setup(mask_weight=0.5)
    adapter = new_adapter(setup, SPLIT)
    optimizer = torch.optim.SGD(adapter.trainable_parameters.values(), lr=0.1)
    batch = np.array([14, 15])
    losses = trainer._training_step(setup, adapter, adapter.model, optimizer=optimizer, batch=batch, epoch=0)
    assert losses[0] == 0 < losses[1]


def test_the_head_has_a_lower_learning_rate(make_setup):
    setup = make_setup(learning_rate=0.01)
    optimizer = trainer._make_optimizer(new_adapter(setup, SPLIT).trainable_parameters, setup.config)
    adapter_group, head_group = optimizer.param_groups
    assert (adapter_group["lr"], head_group["lr"]) == (0.01, trainer.MAX_HEAD_LEARNING_RATE)
    assert [parameter.shape for parameter in head_group["params"]] == [(setup.inputs.channels, 2), (2,)]


# ---------------------------------------------------------------- training


def test_training_lowers_both_losses(make_setup):
    setup = make_setup(mask_weight=0.5, mask_target="features", epochs=12, learning_rate=0.02, patience=12)
    history = trainer.train_adapter(setup, SPLIT, lambda step: None).history
    assert len(history.label_loss) == len(history.mask_loss) == len(history.development_loss) == 12
    assert history.label_loss[-1] < history.label_loss[0]
    assert history.mask_loss[-1] < history.mask_loss[0]


def test_training_stops_early_and_restores_the_best_epoch(make_setup, monkeypatch):
    losses = [5.0, 3.0, 4.0, 4.0, 4.0, 1.0]
    use_development_losses(monkeypatch, [6.0, *losses])
    setup = make_setup(epochs=6, learning_rate=0.01, patience=3)
    adapters, after_step = [], []
    make_adapter = trainer.new_adapter
    monkeypatch.setattr(trainer, "new_adapter", lambda *args: adapters.append(make_adapter(*args)) or adapters[-1])
    trained = trainer.train_adapter(setup, SPLIT, lambda step: after_step.append(weights(adapters[0])))
    assert trained.history.development_loss == losses[:5]
    assert trained.history.best_epoch == 2
    # Two steps per epoch: the weights are those after the fourth step.
    restored = weights(trained)
    assert all(torch.equal(value, after_step[3][name]) for name, value in restored.items())
    assert not all(torch.equal(value, after_step[-1][name]) for name, value in restored.items())


def test_an_adapter_that_raises_the_development_loss_has_no_effect(make_setup, monkeypatch):
    use_development_losses(monkeypatch, [1.0, 3.0, 2.0, 4.0])
    setup = make_setup(epochs=6, learning_rate=0.01, patience=3)
    adapter = trainer.train_adapter(setup, SPLIT, lambda step: None)
    history = adapter.history
    assert (history.best_epoch, history.start_loss, len(history.development_loss)) == (0, 1.0, 3)
    assert not any(value.any() for name, value in weights(adapter).items() if ".up." in name)


def test_a_training_loss_that_is_not_finite_is_an_error(make_setup, monkeypatch):
    monkeypatch.setattr(trainer, "_training_step", lambda *_, **__: (float("inf"), 0.0))
    with pytest.raises(MertoolError, match=r"in epoch 1: give a smaller --learning-rate"):
        trainer.train_adapter(make_setup(), SPLIT, lambda step: None)


def test_a_development_loss_that_is_not_finite_is_an_error(make_setup, monkeypatch):
    use_development_losses(monkeypatch, [9.0, 5.0, float("nan"), 4.0])
    with pytest.raises(MertoolError, match="the loss became nan in epoch 2"):
        trainer.train_adapter(make_setup(epochs=3), SPLIT, lambda step: None)


def test_progress_counts_the_steps_of_all_trainings(make_setup, monkeypatch):
    use_development_losses(monkeypatch, [1.0, 2.0])
    reported = []
    progress = trainer.TrainingProgress(lambda done, total: reported.append((done, total)), total=12, finished=4)
    setup = make_setup(epochs=4, patience=1)
    trainer.train_adapter(setup, SPLIT, progress.report_step)
    progress.finish(setup.config.count_steps(SPLIT))  # early stopping saved six of eight steps
    assert reported == [(5, 12), (6, 12), (12, 12)]

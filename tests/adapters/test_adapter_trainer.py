"""Training of adapters: batches, kept frames, losses, learning rates, and the averaged weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mertool.adapters import inputs, trainer
from mertool.adapters.cross_validation import AdapterSplit
from mertool.adapters.data import AdaptationData
from mertool.adapters.inputs import DROPPED_BLOCK, DROPPED_SHARE, epoch_batches, kept_frames
from mertool.adapters.model import ClassificationHead
from mertool.adapters.setup import AdapterConfig, new_adapter, prepare
from mertool.errors import MertoolError
from mertool.learning.accelerator import make_accelerator
from mertool.learning.labelled_clips import IGNORE_INDEX

N_CLIPS = 16
SPLIT = AdapterSplit(name="fold0", train=np.arange(12), held_out=np.arange(12, 14))
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


def test_the_head_has_its_own_learning_rate_and_weight_decay(make_setup):
    setup = make_setup(learning_rate=0.01, weight_decay=0.02)
    optimizer = trainer._make_optimizer(new_adapter(setup, SPLIT).trainable_parameters, setup.config)
    adapter_group, head_group = optimizer.param_groups
    assert (adapter_group["lr"], adapter_group["weight_decay"]) == (0.01, 0.02)
    assert (head_group["lr"], head_group["weight_decay"]) == (trainer.HEAD_LEARNING_RATE, trainer.HEAD_WEIGHT_DECAY)
    # The head reads both blocks side by side.
    assert [parameter.shape for parameter in head_group["params"]] == [(2 * setup.inputs.channels, 2), (2,)]


def test_a_new_head_tells_no_class_from_another(make_setup):
    setup = make_setup()
    logits = new_adapter(setup, SPLIT).model.head(setup.window_features)
    assert logits.shape == (14, 2)
    assert not logits.any()


def test_a_channel_that_does_not_vary_has_no_weight_in_the_head():
    features = torch.randn(20, 3) + 5
    features[:, 1] = 1000.1
    head = ClassificationHead.from_features(features, n_classes=2)
    assert head.scale[1] == 0
    standardised = (features - head.mean) * head.scale
    torch.testing.assert_close(standardised[:, [0, 2]].std(0, correction=0), torch.ones(2))


# ---------------------------------------------------------------- training


def test_training_lowers_both_losses(make_setup):
    setup = make_setup(mask_weight=0.5, mask_target="features", epochs=12, learning_rate=0.02)
    history = trainer.train_adapter(setup, SPLIT, lambda step: None).history
    assert len(history.label_loss) == len(history.mask_loss) == 12
    assert history.label_loss[-1] < history.label_loss[0]
    assert history.mask_loss[-1] < history.mask_loss[0]


def test_training_keeps_the_average_of_the_weights_after_each_step(make_setup, monkeypatch):
    setup = make_setup(epochs=4, learning_rate=0.01)
    adapters, after_step = [], []
    make_adapter = trainer.new_adapter
    monkeypatch.setattr(trainer, "new_adapter", lambda *args: adapters.append(make_adapter(*args)) or adapters[-1])
    trained = trainer.train_adapter(setup, SPLIT, lambda step: after_step.append(weights(adapters[0])))
    assert len(after_step) == 4 * 3
    # 30 % of 12 steps are 3.6, so a step counts 1 - 1 / 3.6 as much as the next one; the first three weigh the same.
    shares = [1 / 3] * 3
    for n_steps in range(3, 12):
        share = max(1 / 3.6, 1 / (n_steps + 1))
        shares = [(1 - share) * earlier for earlier in shares] + [share]
    for name, value in weights(trained).items():
        mean = sum(share * step[name] for share, step in zip(shares, after_step, strict=True))
        torch.testing.assert_close(value, mean)
        assert not torch.equal(value, after_step[-1][name])


# ---------------------------------------------------------------- what is drawn


def test_a_step_keeps_two_fifths_of_the_frames_in_blocks():
    frames = kept_frames(200, (0, 1, 2))
    assert len(frames) == round((1 - DROPPED_SHARE) * 200)
    blocks = frames.reshape(-1, DROPPED_BLOCK)
    assert (blocks % DROPPED_BLOCK == np.arange(DROPPED_BLOCK)).all()
    assert (np.diff(frames) > 0).all()
    assert kept_frames(200, (0, 1, 2)).tolist() == frames.tolist()
    assert kept_frames(200, (0, 2, 2)).tolist() != frames.tolist()


@pytest.mark.parametrize("n_frames", [1, 3, 5, 9])
def test_short_clips_keep_at_least_one_frame(n_frames):
    for seed in range(20):
        frames = kept_frames(n_frames, (seed,))
        assert 1 <= len(frames) <= n_frames
        assert frames.max() < n_frames


def test_a_pass_gets_the_kept_frames_and_their_targets(make_setup):
    setup = make_setup(mask_weight=0.5, mask_target="features")
    adapter = new_adapter(setup, SPLIT)
    rows = np.array([3, 0, 14])
    clips = trainer._load_micro_batch(setup, adapter, rows, epoch=2)
    kept = [trainer._kept_frames(setup, row, 2) for row in rows]
    assert clips.lengths.tolist() == [len(frames) for frames in kept]
    for clip, row, frames in zip(clips.inputs, rows, kept, strict=True):
        torch.testing.assert_close(clip[: len(frames)], setup.inputs.frames[row][frames])
    targets = [
        adapter.target.targets_for(int(row))[frames[mask[: len(frames)].numpy()]]
        for row, frames, mask in zip(rows, kept, clips.mask, strict=True)
    ]
    torch.testing.assert_close(clips.targets, torch.cat(targets))
    assert clips.labelled.tolist() == [0, 1]
    assert set(clips.dropout.unique().tolist()) <= {0.0, float(np.float32(1 / (1 - trainer.HEAD_DROPOUT)))}


def test_dropout_of_a_clip_depends_on_seed_epoch_and_clip_only(make_setup):
    setup = make_setup()
    draws = [trainer._head_dropout(setup, row, epoch) for row in (0, 1) for epoch in (0, 1)]
    assert len({draw.tobytes() for draw in draws}) == 4
    assert np.mean([draw == 0 for draw in draws]) == pytest.approx(trainer.HEAD_DROPOUT, abs=0.1)
    np.testing.assert_array_equal(trainer._head_dropout(setup, 1, 0), draws[2])


# ---------------------------------------------------------------- faults and progress


def test_a_training_loss_that_is_not_finite_is_an_error(make_setup, monkeypatch):
    monkeypatch.setattr(trainer, "_training_step", lambda *_, **__: (float("inf"), 0.0))
    with pytest.raises(MertoolError, match=r"in epoch 1: give a smaller --learning-rate"):
        trainer.train_adapter(make_setup(), SPLIT, lambda step: None)


def test_progress_counts_the_steps_of_all_trainings(make_setup):
    reported = []
    progress = trainer.TrainingProgress(lambda done, total: reported.append((done, total)), total=10, finished=4)
    setup = make_setup(epochs=1)
    trainer.train_adapter(setup, SPLIT, progress.report_step)
    progress.finish(setup.config.count_steps(SPLIT))
    assert reported == [(5, 10), (6, 10), (7, 10), (7, 10)]


def test_a_class_without_training_clips_has_no_weight(make_setup):
    """Label smoothing has a share of it in the loss of every clip, so a large weight would dominate the loss."""
    setup = replace(make_setup(class_weights="balanced"), n_classes=3)
    setup.labels[:12] = 0
    setup.labels[:3] = 1
    adapter = new_adapter(setup, SPLIT)
    np.testing.assert_allclose(adapter.class_weights, [12 / 9 / 2, 12 / 3 / 2, 0])

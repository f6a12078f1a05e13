"""The MLP, the learned layer weights and the speaker probe: stacked members are what each is alone."""

import numpy as np
import pytest
import torch

from mertool.learning.folds import Folds
from mertool.probing.layer_weights import WeightSchedule, train_layer_weights
from mertool.probing.mlp import MlpSchedule, train_mlp
from mertool.probing.probes import Plan
from mertool.probing.speakers import probe_speakers

COUNT, LAYERS, CHANNELS, CLASSES = 80, 3, 8, 3
QUICK = MlpSchedule(hidden=16, steps=60)


@pytest.fixture(scope="module")
def data():
    """Features (L, N, D) with the label in layer 1, labels, training parts of two folds."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, COUNT)
    x = rng.normal(0, 1, (LAYERS, COUNT, CHANNELS))
    x[1] += 2 * rng.normal(0, 1, (CLASSES, CHANNELS))[labels]
    x = x * np.array([0.01, 1, 100])[:, None, None] + 5
    trains = torch.stack([torch.arange(COUNT) % 2 == fold for fold in range(2)]).float()
    return torch.tensor(x, dtype=torch.float32), torch.as_tensor(labels), trains


def mlp(data, layers=slice(None), members=(0, 1), schedule=QUICK):
    x, labels, trains = data
    seeds = [4, 4]
    return train_mlp(
        x[layers], labels, trains[list(members)], CLASSES, [seeds[m] for m in members], schedule, lambda *_: None
    )


def right(logits, data, axis):
    """Share of right clips outside the training parts."""
    held_out = data[2] == 0
    hits = (logits.argmax(axis) == data[1]).float()
    return (hits * held_out).sum(-1) / held_out.sum(-1)


def test_an_mlp_reads_the_planted_layer(data):
    found = right(mlp(data), data, 2)
    assert (found[1] > 0.8).all()
    assert (found[[0, 2]] < 0.6).all()


def test_an_mlp_does_not_depend_on_the_layers_beside_it(data):
    np.testing.assert_allclose(mlp(data)[1:2], mlp(data, slice(1, 2)), atol=1e-3)


def test_an_mlp_does_not_depend_on_the_other_members(data):
    # Dropout is drawn for all members together.
    still = MlpSchedule(hidden=16, steps=60, dropout=0.0)
    np.testing.assert_allclose(mlp(data, schedule=still)[:, :1], mlp(data, members=(0,), schedule=still), atol=1e-3)


def test_an_mlp_does_not_see_held_out_clips(data):
    x, labels, trains = data
    kept = trains[0] > 0
    other = torch.where(kept[:, None], x, 3 * x), torch.where(kept, labels, (labels + 1) % CLASSES), trains
    np.testing.assert_allclose(mlp(other)[:, 0][..., kept], mlp(data)[:, 0][..., kept], atol=2e-2)


def test_seeds_start_an_mlp_elsewhere(data):
    x, labels, trains = data
    found = train_mlp(x, labels, trains[[0, 0]], CLASSES, [0, 1], QUICK, lambda *_: None)
    assert (found[:, 0] - found[:, 1]).abs().max() > 0.01


def weigh(data, members=(0, 1)):
    x, labels, trains = data
    seeds = [7] * len(members)
    values = x.transpose(0, 1).contiguous()
    return train_layer_weights(
        values, labels, trains[list(members)], CLASSES, seeds, WeightSchedule(steps=120), lambda *_: None
    )


def test_learned_weights_find_the_planted_layer_whatever_the_scales(data):
    weights, logits = weigh(data)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert (weights.argmax(1) == 1).all()
    assert (weights[:, 1] > 0.6).all()
    assert (right(logits, data, 1) > 0.8).all()


def test_a_member_with_layer_weights_is_what_it_is_alone(data):
    together, alone = weigh(data), weigh(data, (1,))
    np.testing.assert_allclose(together[0][1], alone[0][0], atol=1e-3)
    np.testing.assert_allclose(together[1][1], alone[1][0], atol=2e-2)


@pytest.mark.parametrize("planted", [True, False])
def test_speakers_are_found_where_they_are(planted):
    rng = np.random.default_rng(0)
    speakers = rng.integers(0, 8, 160)
    values = rng.normal(0, 1, (160, 2, 10)).astype(np.float32)
    if planted:
        values[:, 1] += 2 * rng.normal(0, 1, (8, 10))[speakers]
    names = np.array([f"s{n}" for n in speakers])
    found = probe_speakers(values, names, 5, 0, torch.device("cpu"), lambda *_: None)
    accuracy, chance = (found.guess == found.truth).mean(1), (found.control == found.shuffled).mean(1)
    assert (accuracy[1] > 0.8) == planted
    assert accuracy[0] < 0.3
    assert (chance < 0.3).all()


def test_a_speaker_with_one_clip_is_left_out():
    values = np.random.default_rng(0).normal(0, 1, (7, 1, 3)).astype(np.float32)
    found = probe_speakers(values, np.array(list("aaabbbc")), 5, 0, torch.device("cpu"), lambda *_: None)
    assert found.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert probe_speakers(values, np.array(list("aaaaabc")), 5, 0, torch.device("cpu"), lambda *_: None) is None


def test_the_same_parts_under_other_names_are_no_other_shuffle():
    first, renamed, other = (Folds(np.array(of), 2, "") for of in ([0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]))
    plan = Plan([first, renamed, other], [0, 1, 2], 2, "ridge", True, torch.device("cpu"))
    assert plan.shuffles == [first, other]
    assert plan.member_seeds == [0, 0, 1, 1, 2, 2]

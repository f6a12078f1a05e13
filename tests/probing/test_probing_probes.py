"""The MLP, the learned layer weights and the speaker probe: a stacked member equals the same member trained alone."""

import numpy as np
import pytest
import torch

from mertool.learning.folds import Folds
from mertool.probing.layer_weights import LayerWeightsConfig, train_layer_weights
from mertool.probing.mlp import MlpConfig, train_mlp
from mertool.probing.probes import ProbePlan
from mertool.probing.progress import ProgressSpan
from mertool.probing.speakers import probe_speakers
from mertool.targets import Classes

COUNT, LAYERS, CHANNELS, CLASSES = 80, 3, 8, 3
QUICK = MlpConfig(hidden=16, min_steps=60)
SILENT = ProgressSpan(lambda done, total: None)


@pytest.fixture(scope="module")
def data():
    """Features (L, N, D) with the label in layer 1, labels, training masks of two folds."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, COUNT)
    x = rng.normal(0, 1, (LAYERS, COUNT, CHANNELS))
    x[1] += 2 * rng.normal(0, 1, (CLASSES, CHANNELS))[labels]
    x = x * np.array([0.01, 1, 100])[:, None, None] + 5
    train_masks = torch.stack([torch.arange(COUNT) % 2 == fold for fold in range(2)]).float()
    return torch.tensor(x, dtype=torch.float32), torch.as_tensor(labels), train_masks


def mlp(data, *, layers=slice(None), members=(0, 1), seeds=(4, 4), config=QUICK):
    x, labels, train_masks = data
    return train_mlp(
        x[layers],
        labels,
        train_masks[list(members)],
        n_outputs=CLASSES,
        seeds=list(seeds[: len(members)]),
        config=config,
        progress=SILENT,
    )


def held_out_accuracy(logits, data, axis):
    """Accuracy on the clips outside each training set."""
    held_out = data[2] == 0
    correct = (logits.argmax(axis) == data[1]).float()
    return (correct * held_out).sum(-1) / held_out.sum(-1)


def test_an_mlp_predicts_from_the_planted_layer(data):
    accuracy = held_out_accuracy(mlp(data), data, 2)
    assert (accuracy[1] > 0.8).all()
    assert (accuracy[[0, 2]] < 0.6).all()


def test_an_mlp_does_not_depend_on_the_layers_beside_it(data):
    np.testing.assert_allclose(mlp(data)[1:2], mlp(data, layers=slice(1, 2)), atol=1e-3)


def test_an_mlp_does_not_depend_on_the_other_members(data):
    # Dropout is drawn for all members together.
    config = MlpConfig(hidden=16, min_steps=60, dropout=0.0)
    np.testing.assert_allclose(mlp(data, config=config)[:, :1], mlp(data, members=(0,), config=config), atol=1e-3)


def test_an_mlp_does_not_see_held_out_clips(data):
    x, labels, train_masks = data
    train = train_masks[0] > 0
    wrong = torch.where(train[:, None], x, 3 * x), torch.where(train, labels, (labels + 1) % CLASSES), train_masks
    np.testing.assert_allclose(mlp(wrong)[:, 0][..., train], mlp(data)[:, 0][..., train], atol=2e-2)


def test_seeds_start_an_mlp_elsewhere(data):
    logits = mlp(data, members=(0, 0), seeds=(0, 1))
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 0.01


def layer_weights(data, members=(0, 1)):
    x, labels, train_masks = data
    return train_layer_weights(
        x.transpose(0, 1).contiguous(),
        labels,
        train_masks[list(members)],
        n_outputs=CLASSES,
        seeds=[7] * len(members),
        config=LayerWeightsConfig(min_steps=120),
        progress=SILENT,
    )


def test_learned_weights_find_the_planted_layer_whatever_the_scales(data):
    weights, logits = layer_weights(data)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert (weights.argmax(1) == 1).all()
    assert (weights[:, 1] > 0.6).all()
    assert (held_out_accuracy(logits, data, 1) > 0.8).all()


def test_a_member_with_layer_weights_is_what_it_is_alone(data):
    together, alone = layer_weights(data), layer_weights(data, (1,))
    np.testing.assert_allclose(together[0][1], alone[0][0], atol=1e-3)
    np.testing.assert_allclose(together[1][1], alone[1][0], atol=2e-2)


def speaker_probe(values, names):
    return probe_speakers(values, names, n_folds=5, seed=0, device=torch.device("cpu"), progress=SILENT)


@pytest.mark.parametrize("planted", [True, False])
def test_speakers_are_predicted_from_the_planted_layer(planted):
    rng = np.random.default_rng(0)
    speakers = rng.integers(0, 8, 160)
    values = rng.normal(0, 1, (160, 2, 10)).astype(np.float32)
    if planted:
        values[:, 1] += 2 * rng.normal(0, 1, (8, 10))[speakers]
    predictions = speaker_probe(values, np.array([f"s{n}" for n in speakers]))
    accuracy = (predictions.predicted == predictions.speakers).mean(1)
    chance = (predictions.control_predicted == predictions.control_speakers).mean(1)
    assert (accuracy[1] > 0.8) == planted
    assert accuracy[0] < 0.3
    assert (chance < 0.3).all()


def test_a_speaker_with_one_clip_is_left_out():
    values = np.random.default_rng(0).normal(0, 1, (7, 1, 3)).astype(np.float32)
    assert speaker_probe(values, np.array(list("aaabbbc"))).rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert speaker_probe(values, np.array(list("aaaaabc"))) is None


def test_renamed_folds_are_the_same_partition():
    first, renamed, other = (Folds(np.array(of), 2, "") for of in ([0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]))
    plan = ProbePlan(
        repetitions=[first, renamed, other],
        seeds=[0, 1, 2],
        target=Classes(("a", "b")),
        estimator="ridge",
        mlp=True,
        device=torch.device("cpu"),
    )
    assert plan.partitions == [first, other]
    assert plan.member_seeds == [0, 0, 1, 1, 2, 2]


def numbers(data):
    """A number of each clip in place of its class, on a scale of its own, and training masks."""
    x, labels, train_masks = data
    return x, 100.0 + 5.0 * labels.double(), train_masks


@pytest.mark.parametrize("probe", ["mlp", "layer weights"])
def test_numbers_are_predicted_on_their_scale(probe, data):
    x, truth, train_masks = numbers(data)
    given = {"n_outputs": 1, "seeds": [0, 1], "progress": SILENT}
    if probe == "mlp":
        outputs = train_mlp(x[1:2], truth, train_masks, config=MlpConfig(hidden=16, min_steps=300), **given)[0]
    else:
        layers_last = x.transpose(0, 1).contiguous()
        weights, outputs = train_layer_weights(
            layers_last, truth, train_masks, config=LayerWeightsConfig(min_steps=300), **given
        )
        assert (weights.argmax(1) == 1).all()
    for member in range(2):
        rows = train_masks[member] == 0
        assert np.corrcoef(outputs[member, 0, rows], truth[rows])[0, 1] > 0.8
        assert abs(outputs[member, 0, rows].mean() - truth[rows].mean()) < 2


def test_a_member_does_not_know_the_scale_of_held_out_numbers(data):
    x, truth, train_masks = numbers(data)
    shifted = torch.where(train_masks[0] > 0, truth, truth + 1000)
    given = {"n_outputs": 1, "seeds": [0], "progress": SILENT, "config": MlpConfig(hidden=16, min_steps=20)}
    first, second = (train_mlp(x[1:2], each, train_masks[:1], **given) for each in (truth, shifted))
    np.testing.assert_allclose(first, second, rtol=1e-4)

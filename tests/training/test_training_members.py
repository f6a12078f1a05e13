"""Members trained at once are what each would have been alone."""

import pytest
import torch

from mertool import fusion
from mertool.training.members import Schedule, drop_modalities, member_logits, train_members

SHAPES = [(2, 6), (1, 4)]


@pytest.fixture
def data():
    torch.manual_seed(5)
    labels = torch.randint(0, 3, (40,))
    features = [torch.randn(40, 2, 6) + labels[:, None, None], 10 * torch.randn(40, 1, 4) + 3]
    present = torch.rand(40, 2) < 0.8
    present[~present.any(1), 0] = True
    return features, present, labels


def train(data, rows, seeds, dropout=0.0, modality_dropout=0.0, epochs=5, learning_rate=1e-3):
    features, present, labels = data
    return train_members(
        lambda: fusion.build("attention", SHAPES, 3, 8, dropout),
        features,
        present,
        labels,
        rows,
        seeds,
        Schedule(epochs, 8, learning_rate, modality_dropout=modality_dropout),
        lambda *_: None,
    )


ROWS = [torch.arange(0, 30), torch.arange(10, 40), torch.arange(0, 40)[torch.arange(40) % 4 != 1]]


def test_together_equals_alone(data):
    features, present, _ = data
    head, state, _ = train(data, ROWS, [1, 2, 3])
    together = member_logits(head, state, features, present)
    for number, (rows, seed) in enumerate(zip(ROWS, [1, 2, 3], strict=True)):
        one, its, _ = train(data, [rows], [seed])
        torch.testing.assert_close(
            member_logits(one, its, features, present)[0], together[number], atol=1e-4, rtol=1e-4
        )


def test_the_normaliser_sees_only_its_own_rows(data):
    features, present, _ = data
    _, state, _ = train(data, ROWS, [1, 2, 3], epochs=1)
    for number, rows in enumerate(ROWS):
        for part, values in enumerate(features):
            there = values[rows][present[rows, part]]
            torch.testing.assert_close(state[f"inputs.mean{part}"][number], there.mean(0))
            torch.testing.assert_close(state[f"inputs.std{part}"][number], there.std(0, correction=0))


def test_held_out_clips_do_not_matter(data):
    features, present, labels = data
    _, before, _ = train(data, ROWS[:1], [1], dropout=0.2, modality_dropout=0.2)
    changed = [values.clone() for values in features]
    for values in changed:
        values[30:] = 1000.0
    other = torch.where(torch.arange(40) >= 30, (labels + 1) % 3, labels)
    _, after, _ = train((changed, present, other), ROWS[:1], [1], dropout=0.2, modality_dropout=0.2)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_the_same_seed_gives_the_same_members(data):
    a, b, c = (train(data, ROWS[:2], seeds, 0.3, 0.2)[1] for seeds in ([1, 2], [1, 2], [1, 3]))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(a["inputs.mean0"], c["inputs.mean0"])
    assert not torch.equal(a["classify.weight"][1], c["classify.weight"][1])


def test_training_learns(data):
    features, present, labels = data
    clear = [features[0] + 4 * labels[:, None, None], features[1] + 40 * labels[:, None, None]]
    head, state, losses = train((clear, present, labels), ROWS, [1, 2, 3], epochs=15, learning_rate=1e-2)
    assert losses[-1] < 0.5 * losses[0]
    right = member_logits(head, state, clear, present).argmax(-1) == labels
    assert right.float().mean() > 0.75


def test_progress_is_by_epoch(data):
    steps = []
    features, present, labels = data
    make = lambda: fusion.build("concat", SHAPES, 3, 8, 0.0)  # noqa: E731
    train_members(make, features, present, labels, ROWS[:1], [0], Schedule(epochs=3), lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_the_last_modality_is_never_dropped(share):
    torch.manual_seed(0)
    present = torch.rand(5000, 3) < 0.6
    kept = drop_modalities(present, share)
    assert not (kept & ~present).any()
    assert torch.equal(kept.any(1), present.any(1))


def test_modalities_are_dropped_at_the_rate_asked():
    torch.manual_seed(0)
    kept = drop_modalities(torch.ones(20_000, 6, dtype=torch.bool), 0.25)
    assert abs(kept.float().mean() - 0.75) < 0.01


def test_a_single_modality_and_no_share_drop_nothing():
    present = torch.rand(100, 1) < 0.5
    assert torch.equal(drop_modalities(present, 0.9), present)
    several = torch.rand(100, 3) < 0.5
    assert torch.equal(drop_modalities(several, 0.0), several)

"""What may choose, what is held out, and what extra rows may do."""

import numpy as np
import pytest
import torch

from mertool.errors import MertoolError
from mertool.fusion.batches import UNUSED
from mertool.fusion.cross_validation import MERTOOLS, OPTIMISTIC, Extra, Settings, train_system
from mertool.fusion.hyperparameters import (
    DROPOUTS,
    RATES,
    WIDTHS,
    Draw,
    choose_nested,
    choose_optimistic,
    development_parts,
    make_draws,
    shuffled_folds,
)
from mertool.fusion.trainer import Schedule
from mertool.learning.folds import Folds
from mertool.learning.labelled_clips import LabelledClips

N, FOLDS = 60, Folds(np.arange(60) % 3, 3, "made")
QUICK = Settings("concat", 3, Draw(8, 0.0, 0.05), seeds=2, epochs=4, schedule=Schedule(modality_dropout=0.0))


@pytest.fixture
def made():
    """Sixty labelled clips of twelve speakers, none in two folds, and ten that are not labelled."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, N)
    speakers = tuple(f"s{number % 12}" for number in range(N))
    features = torch.from_numpy(rng.normal(0, 1, (N + 10, 1, 5)).astype(np.float32))
    features[:N, 0, :3] += 2 * torch.eye(3)[labels]
    return (
        [features],
        torch.ones(N + 10, 1, dtype=torch.bool),
        LabelledClips(tuple(map(str, range(N))), labels, speakers),
    )


def only(made, count=N):
    return [made[0][0][:count]], made[1][:count], made[2]


def test_each_clip_is_scored_by_the_members_that_held_it_out(made):
    features, present, examples = only(made)
    system = train_system(features, present, examples, FOLDS, QUICK)
    for fold in range(3):
        rows = FOLDS.held_out(fold)
        np.testing.assert_allclose(system.held_out[rows], system.by_fold[fold, rows])
    assert [group.fold for group in system.groups] == [(0, 0, 1, 1, 2, 2)]
    assert (system.held_out.argmax(1) == examples.labels).mean() > 0.5


@pytest.mark.parametrize("search", [0, 2])
def test_labels_of_held_out_clips_change_nothing_of_their_score(made, search):
    """Neither in training nor in the choice of draw and epoch."""
    features, present, examples = only(made)
    settings = Settings("concat", 3, Draw(8, 0.0, 1e-2), search, seeds=1, epochs=3)
    rows = FOLDS.held_out(1)
    before = train_system(features, present, examples, FOLDS, settings)
    labels = examples.labels.copy()
    labels[rows] = (labels[rows] + 1) % 3
    changed = LabelledClips(examples.clips, labels, examples.speakers)
    after = train_system(features, present, changed, FOLDS, settings)
    np.testing.assert_allclose(before.held_out[rows], after.held_out[rows], atol=1e-4)
    assert before.plans[1] == after.plans[1]


def test_the_official_protocol_chooses_on_the_clips_that_score_it(made):
    """So labels without any meaning look better than chance, and the system says that it is optimistic."""
    rng = np.random.default_rng(1)
    examples = LabelledClips(made[2].clips, rng.integers(0, 3, N), made[2].speakers)
    features = [torch.from_numpy(rng.normal(0, 1, (N, 1, 5)).astype(np.float32))]
    settings = Settings("concat", 3, search=3, protocol=MERTOOLS, seeds=1, epochs=12)
    system = train_system(features, made[1][:N], examples, FOLDS, settings)
    assert system.chosen["note"] == OPTIMISTIC
    assert system.chosen["waf"] > 0.36
    assert system.chosen["width"] == system.plans[0][0].width


# ---------------------------------------------------------------- extra rows


def test_extra_rows_teach_only_the_folds_that_use_them(made):
    features, present, examples = made
    labels = np.full((3, 10), UNUSED)
    none = train_system(features, present, examples, FOLDS, QUICK, Extra(labels))
    labels[2] = 1
    some = train_system(features, present, examples, FOLDS, QUICK, Extra(labels))
    for fold in range(2):
        np.testing.assert_allclose(none.by_fold[fold], some.by_fold[fold], atol=1e-4)
    assert np.abs(none.by_fold[2] - some.by_fold[2]).max() > 0.01
    assert some.held_out.shape == (N, 3)
    assert some.by_fold.shape == (3, N + 10, 3)


def test_extra_rows_that_no_fold_uses_are_as_none(made):
    features, present, examples = made
    without = train_system(*only(made), FOLDS, QUICK)
    unused = train_system(features, present, examples, FOLDS, QUICK, Extra(np.full((3, 10), UNUSED)))
    np.testing.assert_allclose(without.held_out, unused.held_out, atol=1e-5)


def test_the_weight_of_extra_rows_matters(made):
    features, present, examples = made
    labels = np.ones((3, 10), int)
    full, none = (
        train_system(features, present, examples, FOLDS, QUICK, Extra(labels, np.full((3, 10), weight)))
        for weight in (1.0, 0.0)
    )
    assert np.abs(full.held_out - none.held_out).max() > 0.01


def test_known_plans_need_no_search(made):
    plans = [(Draw(4, 0.0, 1e-2), 1), (Draw(8, 0.0, 1e-2), 2), (Draw(4, 0.0, 1e-2), 3)]
    settings = Settings("concat", 3, search=50, seeds=1, epochs=100)
    steps = []
    system = train_system(*only(made), FOLDS, settings, None, lambda *step: steps.append(step), plans)
    assert system.plans == plans
    assert sorted((group.width, group.fold) for group in system.groups) == [(4, (0, 2)), (8, (1,))]
    assert max(steps) == (6, 6)


# ---------------------------------------------------------------- the choice


def test_draws_are_of_the_official_space_and_seeded():
    draws = make_draws(200, 1)
    assert {draw.width for draw in draws} == set(WIDTHS)
    assert {draw.dropout for draw in draws} == set(DROPOUTS)
    assert {draw.learning_rate for draw in draws} == set(RATES)
    assert draws == make_draws(200, 1) != make_draws(200, 2)


def test_each_fold_chooses_for_itself():
    scores = np.zeros((2, 3, 4))
    scores[0, 2, 1] = scores[1, 0, 3] = 0.5
    scores[1, 2, 3] = 0.4
    assert choose_nested(scores) == [(2, 2), (0, 4)]


def test_the_official_choice_is_the_best_mean_of_best_epochs():
    scores = np.zeros((2, 2, 3))
    scores[:, 0] = [[0.9, 0.1, 0.1], [0.1, 0.1, 0.3]]
    scores[:, 1] = [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    assert choose_optimistic(scores) == 0


def test_development_parts_are_of_training_clips_and_other_speakers(made):
    for fold, rows in enumerate(development_parts(made[2], FOLDS, 0)):
        assert set(rows) <= set(FOLDS.train(fold))
        rest = set(FOLDS.train(fold)) - set(rows)
        assert {made[2].speakers[row] for row in rows}.isdisjoint(made[2].speakers[row] for row in rest)
        assert 0 < len(rows) < len(rest)


def test_a_part_too_small_to_choose_says_so():
    examples = LabelledClips(("a", "b", "c", "d"), np.array([0, 1, 0, 1]), (None,) * 4)
    with pytest.raises(MertoolError, match="leave out --search, or give more clips"):
        development_parts(examples, Folds(np.array([0, 0, 1, 1]), 2, "made"), 0)


def test_official_folds_are_shuffled_and_even(made):
    folds = shuffled_folds(made[2], 7, 0)
    assert sorted(np.bincount(folds.fold_of)) == [8, 8, 8, 9, 9, 9, 9]
    assert not np.array_equal(folds.fold_of, np.arange(N) % 7)
    assert not np.array_equal(folds.fold_of, shuffled_folds(made[2], 7, 1).fold_of)
    with pytest.raises(MertoolError, match="61 folds of 60 labelled clips"):
        shuffled_folds(made[2], 61, 0)

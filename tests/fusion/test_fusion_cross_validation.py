"""Cross-validation: selection, held-out clips, and pseudo-labels."""

import numpy as np
import pytest
import torch

from mertool.errors import MertoolError
from mertool.fusion.cross_validation import OPTIMISTIC, EnsembleConfig, train_ensemble
from mertool.fusion.hyperparameters import (
    DROPOUTS,
    LEARNING_RATES,
    WIDTHS,
    Trial,
    development_splits,
    official_folds,
    sample_trials,
    select_optimistic,
    select_per_fold,
)
from mertool.fusion.modality_features import FusionData, ModalityFeatures
from mertool.fusion.trainer import FusionTraining
from mertool.learning.folds import Folds
from mertool.learning.labelled_clips import IGNORE_INDEX, LabelledClips
from mertool.options.fuse import MERTOOLS

N, U, FOLDS = 60, 10, Folds(np.arange(60) % 3, 3, "made")
TRIAL = Trial(width=8, dropout=0.0, learning_rate=0.05, epochs=4)
QUICK = EnsembleConfig(head="concat", classes=3, trial=TRIAL, seeds=2, training=FusionTraining(modality_dropout=0.0))


@pytest.fixture
def labelled():
    """Sixty labelled clips of twelve speakers, none in two folds."""
    labels = np.random.default_rng(0).integers(0, 3, N)
    return LabelledClips(tuple(map(str, range(N))), labels, tuple(f"s{number % 12}" for number in range(N)))


@pytest.fixture
def features(labelled):
    """Features of the labelled clips, and of ten that are not."""
    values = np.random.default_rng(1).normal(0, 1, (N + U, 1, 5)).astype(np.float32)
    values[:N, 0, :3] += 2 * np.eye(3)[labelled.labels]
    return ModalityFeatures([torch.from_numpy(values)], torch.ones(N + U, 1, dtype=torch.bool))


@pytest.fixture
def of_labelled(features):
    return features.rows(slice(0, N))


def test_each_clip_is_scored_by_the_members_that_held_it_out(of_labelled, labelled):
    ensemble = train_ensemble(FusionData(of_labelled, labelled, FOLDS), QUICK)
    for fold in range(3):
        rows = FOLDS.held_out(fold)
        np.testing.assert_allclose(ensemble.held_out_logits[rows], ensemble.fold_logits[fold, rows])
    assert [weights.fold for weights in ensemble.weights] == [(0, 0, 1, 1, 2, 2)]
    assert (ensemble.held_out_logits.argmax(1) == labelled.labels).mean() > 0.5


@pytest.mark.parametrize("search", [0, 2])
def test_labels_of_held_out_clips_change_nothing_of_their_score(of_labelled, labelled, search, monkeypatch):
    """Neither in training nor in the selection of trial and epoch.

    Without dropout: its random numbers depend on which members are stacked, and other folds may select other trials.
    """
    monkeypatch.setattr("mertool.fusion.hyperparameters.DROPOUTS", (0.0,))
    trial = Trial(width=8, dropout=0.0, learning_rate=1e-2, epochs=3)
    config = EnsembleConfig(head="concat", classes=3, trial=trial, search=search, seeds=1)
    rows = FOLDS.held_out(1)
    before = train_ensemble(FusionData(of_labelled, labelled, FOLDS), config)
    labels = labelled.labels.copy()
    labels[rows] = (labels[rows] + 1) % 3
    relabelled = LabelledClips(labelled.clips, labels, labelled.speakers)
    after = train_ensemble(FusionData(of_labelled, relabelled, FOLDS), config)
    np.testing.assert_allclose(before.held_out_logits[rows], after.held_out_logits[rows], atol=1e-4)
    assert before.trials[1] == after.trials[1]


def test_the_official_protocol_selects_on_the_clips_that_score_it(labelled):
    """So labels without any meaning look better than chance, and the ensemble says that it is optimistic."""
    rng = np.random.default_rng(1)
    meaningless = LabelledClips(labelled.clips, rng.integers(0, 3, N), labelled.speakers)
    values = torch.from_numpy(rng.normal(0, 1, (N, 1, 5)).astype(np.float32))
    features = ModalityFeatures([values], torch.ones(N, 1, dtype=torch.bool))
    config = EnsembleConfig(head="concat", classes=3, trial=Trial(epochs=12), search=3, protocol=MERTOOLS, seeds=1)
    ensemble = train_ensemble(FusionData(features, meaningless, FOLDS), config)
    assert ensemble.selection["note"] == OPTIMISTIC
    assert ensemble.selection["waf"] > 0.36
    assert ensemble.selection["width"] == ensemble.trials[0].width


# ---------------------------------------------------------------- pseudo-labels


def test_pseudo_labels_teach_only_the_folds_that_have_them(features, labelled):
    pseudo_labels = np.full((3, U), IGNORE_INDEX)
    without = train_ensemble(FusionData(features, labelled, FOLDS, pseudo_labels), QUICK)
    pseudo_labels[2] = 1
    some = train_ensemble(FusionData(features, labelled, FOLDS, pseudo_labels), QUICK)
    for fold in range(2):
        np.testing.assert_allclose(without.fold_logits[fold], some.fold_logits[fold], atol=1e-4)
    assert np.abs(without.fold_logits[2] - some.fold_logits[2]).max() > 0.01
    assert some.held_out_logits.shape == (N, 3)
    assert some.fold_logits.shape == (3, N + U, 3)


def test_unlabelled_clips_without_pseudo_labels_change_nothing(features, of_labelled, labelled):
    expected = train_ensemble(FusionData(of_labelled, labelled, FOLDS), QUICK)
    ensemble = train_ensemble(FusionData(features, labelled, FOLDS), QUICK)
    np.testing.assert_allclose(ensemble.held_out_logits, expected.held_out_logits, atol=1e-5)


def test_known_trials_need_no_search(of_labelled, labelled):
    trials = [Trial(width=width, dropout=0.0, learning_rate=1e-2, epochs=n) for width, n in ((4, 1), (8, 2), (4, 3))]
    config = EnsembleConfig(head="concat", classes=3, trial=Trial(epochs=100), search=50, seeds=1)
    steps = []
    data = FusionData(of_labelled, labelled, FOLDS)
    ensemble = train_ensemble(data, config, trials=trials, progress=lambda *step: steps.append(step))
    assert ensemble.trials == trials
    assert sorted((weights.width, weights.fold) for weights in ensemble.weights) == [(4, (0, 2)), (8, (1,))]
    assert max(steps) == (6, 6)


# ---------------------------------------------------------------- selection


def test_trials_are_of_the_official_search_space_and_seeded():
    trials = sample_trials(200, epochs=7, seed=1)
    assert {trial.width for trial in trials} == set(WIDTHS)
    assert {trial.dropout for trial in trials} == set(DROPOUTS)
    assert {trial.learning_rate for trial in trials} == set(LEARNING_RATES)
    assert {trial.epochs for trial in trials} == {7}
    assert trials == sample_trials(200, epochs=7, seed=1) != sample_trials(200, epochs=7, seed=2)


def test_each_fold_selects_for_itself():
    trials = sample_trials(3, epochs=4, seed=0)
    scores = np.zeros((2, 3, 4))
    scores[0, 2, 1] = scores[1, 0, 3] = 0.5
    scores[1, 2, 3] = 0.4
    first, second = select_per_fold(trials, scores)
    assert (first.width, first.dropout, first.epochs) == (trials[2].width, trials[2].dropout, 2)
    assert (second.width, second.dropout, second.epochs) == (trials[0].width, trials[0].dropout, 4)


def test_the_official_selection_is_the_best_mean_of_best_epochs():
    trials = [Trial(width=1), Trial(width=2)]
    scores = np.zeros((2, 2, 3))
    scores[:, 0] = [[0.9, 0.1, 0.1], [0.1, 0.1, 0.3]]
    scores[:, 1] = [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    assert select_optimistic(trials, scores) == (trials[0], pytest.approx(0.6))


def test_development_splits_are_of_training_clips_and_other_speakers(labelled):
    for fold, rows in enumerate(development_splits(labelled, FOLDS, 0)):
        assert set(rows) <= set(FOLDS.train(fold))
        rest = set(FOLDS.train(fold)) - set(rows)
        assert {labelled.speakers[row] for row in rows}.isdisjoint(labelled.speakers[row] for row in rest)
        assert 0 < len(rows) < len(rest)


def test_too_few_clips_for_a_development_split_say_so():
    labelled = LabelledClips(("a", "b", "c", "d"), np.array([0, 1, 0, 1]), (None,) * 4)
    with pytest.raises(MertoolError, match="leave out --search, or give more clips"):
        development_splits(labelled, Folds(np.array([0, 0, 1, 1]), 2, "made"), 0)


def test_official_folds_are_shuffled_and_even(labelled):
    folds = official_folds(labelled, 7, 0)
    assert sorted(np.bincount(folds.fold_of)) == [8, 8, 8, 9, 9, 9, 9]
    assert not np.array_equal(folds.fold_of, np.arange(N) % 7)
    assert not np.array_equal(folds.fold_of, official_folds(labelled, 7, 1).fold_of)
    with pytest.raises(MertoolError, match="61 folds of 60 labelled clips"):
        official_folds(labelled, 61, 0)

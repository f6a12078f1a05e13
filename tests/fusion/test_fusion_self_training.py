"""Self-training with the members that `fuse` trains."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mertool.fusion.cross_validation import Settings, train_system
from mertool.fusion.hyperparameters import Draw
from mertool.fusion.objective import UNUSED
from mertool.fusion.pseudo_labels import SelfTraining
from mertool.fusion.self_training import self_train_system
from mertool.fusion.trainer import Schedule
from mertool.learning.folds import Folds
from mertool.learning.labelled_clips import LabelledClips

N, U, CLASSES = 36, 80, 3
# Without random numbers while training, so that members are comparable whatever they are stacked with.
QUIET = Schedule(modality_dropout=0.0)
SETTINGS = Settings("concat", CLASSES, Draw(8, 0.0, 0.02), seeds=2, epochs=12, schedule=QUIET)


@pytest.fixture(scope="module")
def clips():
    """Features and presence of two parts, one of which some unlabelled clips lack; true labels of all."""
    rng = np.random.default_rng(0)
    truth = np.concatenate([np.arange(N) % CLASSES, rng.integers(0, CLASSES, U)])
    centres = rng.normal(0, 1, (2, CLASSES, 1, 10))
    features = [
        torch.from_numpy((0.6 * c[truth] + rng.normal(0, 1, (N + U, 1, 10))).astype(np.float32)) for c in centres
    ]
    present = torch.ones(N + U, 2, dtype=torch.bool)
    present[N + 70 :, 1] = False
    return features, present, truth


def examples_of(labels):
    return LabelledClips(tuple(f"c{n}" for n in range(len(labels))), labels, (None,) * len(labels))


FOLDS = Folds(np.arange(N) // CLASSES % 3, 3, "three")


def run(clips, labels, options):
    features, present, _ = clips
    examples = examples_of(labels)
    singles = [
        train_system([features[part]], present[:, part : part + 1], examples, FOLDS, SETTINGS) for part in range(2)
    ]
    return self_train_system(features, present, examples, FOLDS, SETTINGS, singles, options)


@pytest.fixture(scope="module")
def trained(clips):
    return run(clips, clips[2][:N], SelfTraining(rounds=2))


def test_the_system_is_that_of_the_last_round(trained):
    system, done = trained
    assert system is done.last.kept
    assert system.held_out.shape == (N, CLASSES)
    assert sum(len(group.fold) for group in system.groups) == 6
    assert done.last.unlabelled.shape == (3, U, CLASSES)
    assert len(done.report["rounds"]) == 2


def test_clips_of_one_part_alone_are_not_taken_and_what_is_taken_is_mostly_true(clips, trained):
    pseudo = trained[1].pseudo
    assert (pseudo[:, 70:] == UNUSED).all()
    used = pseudo != UNUSED
    assert used.sum(1).min() > 5
    assert (pseudo == clips[2][N:])[used].mean() > 0.85


def test_without_pseudo_labels_it_is_the_system_of_labelled_clips(clips):
    """A share that takes no clip: unlabelled rows change nothing, not even the normaliser."""
    system, done = run(clips, clips[2][:N], SelfTraining(rounds=1, share=1e-6))
    assert (done.pseudo == UNUSED).all()
    features = [values[:N] for values in clips[0]]
    alone = train_system(features, clips[1][:N], examples_of(clips[2][:N]), FOLDS, SETTINGS)
    np.testing.assert_allclose(system.held_out, alone.held_out, atol=1e-4)


def test_labels_of_a_fold_do_not_reach_the_members_that_score_it(clips, trained):
    labels = clips[2][:N].copy()
    rows = FOLDS.held_out(1)
    labels[rows] = (labels[rows] + 1) % CLASSES
    system, done = run(clips, labels, SelfTraining(rounds=2))
    np.testing.assert_array_equal(done.pseudo[1], trained[1].pseudo[1])
    np.testing.assert_allclose(system.held_out[rows], trained[0].held_out[rows], atol=1e-3)
    assert (done.pseudo[[0, 2]] != trained[1].pseudo[[0, 2]]).any()


def test_progress_counts_all_rounds(clips):
    seen = []
    settings = replace(SETTINGS, epochs=2, seeds=1)
    examples = examples_of(clips[2][:N])
    given = SelfTraining(rounds=2)
    self_train_system(*clips[:2], examples, FOLDS, settings, [], given, lambda *at: seen.append(at))
    assert {total for _, total in seen} == {3 * 3 * 2}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (18, 18)


def test_a_search_is_done_once_on_labelled_clips(clips, monkeypatch):
    import mertool.fusion.cross_validation as system

    searched = []
    nested = system._nested
    monkeypatch.setattr(system, "_nested", lambda data, progress: searched.append(data) or nested(data, progress))
    settings = replace(SETTINGS, epochs=2, seeds=1, search=2)
    given = SelfTraining(rounds=1)
    found, _ = self_train_system(*clips[:2], examples_of(clips[2][:N]), FOLDS, settings, [], given)
    assert len(searched) == 1
    assert found.chosen["draws"] == 2

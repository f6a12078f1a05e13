"""Self-training: what its rounds select, and that no label of a fold reaches the members that score it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mertool.errors import MertoolError
from mertool.fusion import self_training
from mertool.fusion.cross_validation import EnsembleConfig, train_ensemble
from mertool.fusion.hyperparameters import Trial
from mertool.fusion.modality_features import FusionData, ModalityFeatures
from mertool.fusion.self_training import SelfTraining, self_train
from mertool.fusion.trainer import FusionTraining
from mertool.learning.folds import Folds
from mertool.learning.labelled_clips import IGNORE_INDEX, LabelledClips

N, U, CLASSES = 36, 200, 3
WITHOUT_TEXT = 20  # of the unlabelled clips
# Without random numbers in training, so that members are comparable whatever they are stacked with.
CONFIG = EnsembleConfig(
    head="concat",
    classes=CLASSES,
    trial=Trial(width=8, dropout=0.0, learning_rate=0.02, epochs=12),
    seeds=2,
    training=FusionTraining(modality_dropout=0.0),
)
FOLDS = Folds(np.arange(N) // CLASSES % 3, 3, "three")


@pytest.fixture(scope="module")
def truth():
    """True labels of labelled and unlabelled clips."""
    return np.concatenate([np.arange(N) % CLASSES, np.random.default_rng(0).integers(0, CLASSES, U)])


@pytest.fixture(scope="module")
def features(truth):
    """Two modalities, each noisy by itself; some unlabelled clips lack the second."""
    rng = np.random.default_rng(1)
    centres = rng.normal(0, 1, (2, CLASSES, 1, 10))
    values = [
        torch.from_numpy((0.6 * centre[truth] + rng.normal(0, 1, (N + U, 1, 10))).astype(np.float32))
        for centre in centres
    ]
    present = torch.ones(N + U, 2, dtype=torch.bool)
    present[-WITHOUT_TEXT:, 1] = False
    return ModalityFeatures(values, present)


def labelled_clips(labels):
    return LabelledClips(tuple(f"c{n}" for n in range(len(labels))), labels, (None,) * len(labels))


def run(features, labels, options, config=CONFIG):
    data = FusionData(features, labelled_clips(labels), FOLDS)
    unimodal = [train_ensemble(data.modality(index), config) for index in range(2)]
    return self_train(data, config, unimodal=unimodal, self_training=options)


@pytest.fixture(scope="module")
def rounds():
    """Pseudo-labels (F, U) of each training of `trained`, in turn; None for the first."""
    return []


@pytest.fixture(scope="module")
def trained(features, truth, rounds):
    def train(data, *args, **options):
        rounds.append(data.pseudo_labels)
        return train_ensemble(data, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_training, "train_ensemble", train)
        return run(features, truth[:N], SelfTraining(rounds=3))


def test_the_first_training_has_no_pseudo_label_and_later_ones_more_and_more(trained, rounds):
    assert len(rounds) == 4
    assert rounds[0] is None
    counts = [(labels != IGNORE_INDEX).sum(1) for labels in rounds[1:]]
    assert (counts[0] > 0).all()
    assert (counts[1] > counts[0]).all()
    assert (counts[2] > counts[1]).all()
    np.testing.assert_array_equal(rounds[-1], trained.pseudo_labels)


def test_the_ensemble_is_that_of_the_last_round(trained):
    assert trained.ensemble.held_out_logits.shape == (N, CLASSES)
    assert sum(len(weights.fold) for weights in trained.ensemble.weights) == 6
    assert trained.ensemble.fold_logits.shape == (3, N + U, CLASSES)


def test_at_most_as_many_as_labelled_training_clips_and_by_class_in_their_shares(trained, truth):
    for fold, pseudo_labels in enumerate(trained.pseudo_labels):
        labels = truth[FOLDS.train(fold)]
        selected = np.bincount(pseudo_labels[pseudo_labels != IGNORE_INDEX], minlength=CLASSES)
        assert selected.sum() <= len(labels)
        assert selected.max() <= np.ceil(len(labels) / CLASSES)


def test_clips_of_one_modality_are_not_selected_and_most_pseudo_labels_are_right(trained, truth):
    pseudo_labels = trained.pseudo_labels
    assert (pseudo_labels[:, -WITHOUT_TEXT:] == IGNORE_INDEX).all()
    used = pseudo_labels != IGNORE_INDEX
    assert used.sum(1).min() > 5
    assert (pseudo_labels == truth[N:])[used].mean() > 0.85


def test_unlabelled_clips_help(features, truth, trained):
    """On clips that nobody labelled, where there are enough to tell."""
    alone = train_ensemble(FusionData(features, labelled_clips(truth[:N]), FOLDS), CONFIG)
    before, after = ((each.fold_logits[:, N:].argmax(2) == truth[N:]).mean() for each in (alone, trained.ensemble))
    assert after > before + 0.01


def test_the_report_of_each_round(trained):
    report = trained.report
    assert report["unlabelled_clips"] == U
    assert len(report["rounds"]) == 3
    last = report["rounds"][-1]
    assert set(last) == {"agreed", "thresholds", "taken", "waf", "gain"}
    assert last["gain"]["difference"] == pytest.approx(last["waf"]["value"] - report["before"]["value"])
    mean = [(trained.pseudo_labels == index).sum() / 3 for index in range(CLASSES)]
    np.testing.assert_allclose(last["taken"], mean)


def test_without_pseudo_labels_it_is_the_ensemble_of_labelled_clips(features, truth):
    """A share that selects no clip: unlabelled rows change nothing, not even the standardizer."""
    result = run(features, truth[:N], SelfTraining(rounds=1, share=1e-6))
    assert (result.pseudo_labels == IGNORE_INDEX).all()
    alone = train_ensemble(FusionData(features.rows(slice(0, N)), labelled_clips(truth[:N]), FOLDS), CONFIG)
    np.testing.assert_allclose(result.ensemble.held_out_logits, alone.held_out_logits, atol=1e-4)


def test_labels_of_a_fold_do_not_reach_the_members_that_score_it(features, truth, trained):
    """The labels of fold 1 are made nonsense: its own pseudo-labels and scores stay, those of other folds do not."""
    labels = truth[:N].copy()
    rows = FOLDS.held_out(1)
    labels[rows] = (labels[rows] + 1) % CLASSES
    changed = run(features, labels, SelfTraining(rounds=3))
    np.testing.assert_array_equal(changed.pseudo_labels[1], trained.pseudo_labels[1])
    np.testing.assert_allclose(
        changed.ensemble.held_out_logits[rows], trained.ensemble.held_out_logits[rows], atol=1e-3
    )
    assert (changed.pseudo_labels[[0, 2]] != trained.pseudo_labels[[0, 2]]).any()


def test_progress_counts_all_rounds(features, truth):
    steps = []
    config = replace(CONFIG, trial=replace(CONFIG.trial, epochs=2), seeds=1)
    self_train(
        FusionData(features, labelled_clips(truth[:N]), FOLDS),
        config,
        unimodal=[],
        self_training=SelfTraining(rounds=2),
        progress=lambda *step: steps.append(step),
    )
    assert {total for _, total in steps} == {3 * 3 * 2}
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1] == (18, 18)


def test_a_search_is_done_once_on_labelled_clips(features, truth, monkeypatch):
    from mertool.fusion import cross_validation

    searches = []
    monkeypatch.setattr(
        cross_validation,
        "sample_trials",
        lambda *args, **options: searches.append(args) or [Trial(width=4, epochs=2)] * 2,
    )
    config = replace(CONFIG, trial=replace(CONFIG.trial, epochs=2), seeds=1, search=2)
    data = FusionData(features, labelled_clips(truth[:N]), FOLDS)
    result = self_train(data, config, unimodal=[], self_training=SelfTraining(rounds=1))
    assert len(searches) == 1
    assert result.ensemble.selection["draws"] == 2


@pytest.mark.parametrize(
    "options, message",
    [({"rounds": 0}, "0 rounds"), ({"share": 0.0}, "a share of 0"), ({"confidence": 0.3}, "from 0.5 to below 1")],
)
def test_options_are_checked(options, message):
    with pytest.raises(MertoolError, match=message):
        SelfTraining(**options)

"""Nested cross-validation: what is chosen for a fold never saw that fold."""

import numpy as np
import pytest
import torch

from mertool.learning.folds import Folds, make_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.probing.nested_cv import PENALTIES, inner_pairs, probe_linear
from mertool.probing.window import choose_window, nested_windows, window_guess

CPU = torch.device("cpu")
COUNT, LAYERS, CHANNELS, CLASSES = 150, 4, 10, 3


@pytest.fixture(scope="module")
def data():
    """Labels written weakly into layers 1 and 2."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, COUNT)
    values = rng.normal(0, 1, (COUNT, LAYERS, CHANNELS)).astype(np.float32)
    values[:, 1:3] += 0.7 * rng.normal(0, 1, (CLASSES, CHANNELS))[labels][:, None]
    return values, labels


def shuffle(labels, count, seed=0):
    return make_folds(
        LabelledClips(tuple(f"c{n}" for n in range(len(labels))), labels, (None,) * len(labels)), count, seed
    )


def permuted(labels, count):
    random = np.random.default_rng(3)
    return np.stack([random.permutation(labels) for _ in range(count)])


def probe(values, labels, shuffles, estimator="logistic"):
    control = permuted(labels, len(shuffles))
    return probe_linear(values, labels, control, shuffles, CLASSES, estimator, CPU, lambda *_: None)


def test_pairs_of_folds_that_are_left_out_together():
    assert inner_pairs(2) == []
    assert inner_pairs(3) == [(0, 1), (0, 2), (1, 2)]
    assert len(inner_pairs(5)) == 10
    for count in (6, 10, 24):
        pairs = inner_pairs(count)
        assert len(pairs) == 2 * count
        assert {len([pair for pair in pairs if fold in pair]) for fold in range(count)} == {4}


@pytest.mark.parametrize("estimator", list(PENALTIES))
def test_planted_layers_are_read_and_shuffled_labels_are_not(data, estimator):
    values, labels = data
    found = probe(values, labels, [shuffle(labels, 5), shuffle(labels, 5, 1)], estimator)
    right = (found.logits.argmax(-1) == labels).mean(-1)
    assert right.shape == (2, LAYERS)
    assert (right[:, 1:3] > 0.6).all()
    assert (right[:, [0, 3]] < 0.5).all()
    control = permuted(labels, 2)[:, None]  # each shuffle of the folds has shuffled labels of its own
    assert abs((found.control.argmax(-1) == control).mean() - 1 / CLASSES) < 0.1
    assert found.unsolved == 0


@pytest.mark.parametrize("estimator", list(PENALTIES))
@pytest.mark.parametrize("fold", [0, 3])
def test_what_is_chosen_for_a_fold_does_not_depend_on_its_labels(data, estimator, fold):
    values, labels = data
    folds = shuffle(labels, 5)
    wrong = np.where(folds.fold_of == fold, (labels + 1) % CLASSES, labels)
    a, b = (probe(values, given, [folds], estimator) for given in (labels, wrong))
    assert a.chosen[0, fold].tolist() == b.chosen[0, fold].tolist()
    assert (a.inner[0, fold] == b.inner[0, fold]).mean() > 0.995  # rounding
    picks = [
        nested_windows(range(LAYERS), y, folds, r.inner[0], r.logits[0].argmax(-1), CLASSES, 1, None, 0)[fold]
        for y, r in ((labels, a), (wrong, b))
    ]
    assert picks[0] == picks[1]
    rows = folds.held_out(fold)
    np.testing.assert_allclose(a.logits[0][:, rows], b.logits[0][:, rows], atol=0.02)


def test_inner_guesses_are_of_other_folds(data):
    values, labels = data
    folds = shuffle(labels, 6)
    inner = probe(values, labels, [folds]).inner[0]
    for fold in range(6):
        judged = set(folds.fold_of[np.flatnonzero(inner[fold, 0] >= 0)])
        assert judged == {(fold + step) % 6 for step in (-2, -1, 1, 2)}


def test_the_penalty_is_the_one_of_the_least_inner_loss(data):
    """One fold and layer, the long way: fits without it and each neighbour, scored on the neighbour."""
    from mertool.probing.logistic import BatchedLogisticRegression

    values, labels = data
    folds = shuffle(labels, 5)
    x, y = torch.as_tensor(values).transpose(0, 1), torch.as_tensor(labels)
    losses = []
    for strength in PENALTIES["logistic"]:
        total = 0.0
        for other in range(1, 5):
            trains = torch.as_tensor(~np.isin(folds.fold_of, (0, other))).float()[None]
            solver = BatchedLogisticRegression(x[[1]].contiguous(), y[None], trains, CLASSES)
            logits = solver.logits(solver.solve(strength).theta)[0, 0].T
            rows = folds.held_out(other)
            total += float(torch.nn.functional.cross_entropy(logits[rows], y[rows], reduction="sum"))
        losses.append(total)
    chosen = probe(values, labels, [folds]).chosen[0, 0, 1]
    assert chosen == PENALTIES["logistic"][int(np.argmin(losses))]


def test_two_folds_leave_nothing_to_choose_on(data):
    values, labels = data
    found = probe(values, labels, [shuffle(labels, 2)])
    assert len(np.unique(found.chosen)) == 1
    assert (found.inner == -1).all()


def test_layers_in_several_groups_are_layers_at_once(data, monkeypatch):
    values, labels = data
    folds = [shuffle(labels, 3)]
    at_once = probe(values, labels, folds)
    monkeypatch.setattr("mertool.probing.nested_cv.CPU_BYTES", 1)
    by_layer = probe(values, labels, folds)
    np.testing.assert_allclose(at_once.logits, by_layer.logits, atol=0.02)
    assert (at_once.chosen == by_layer.chosen).all()


def test_the_best_of_many_useless_layers_scores_at_chance_when_nested():
    """The curve's own maximum is above chance by choice alone; the nested window is not."""
    rng = np.random.default_rng(0)
    nested, best = [], []
    for seed in range(3):
        values = rng.normal(0, 1, (120, 25, 6)).astype(np.float32)
        labels = rng.permutation(np.arange(120) % 2)
        folds = shuffle(labels, 5, seed)
        found = probe_linear(values, labels, labels[None], [folds], 2, "ridge", CPU, lambda *_: None)
        guess = found.logits[0].argmax(-1)
        windows = nested_windows(range(25), labels, folds, found.inner[0], guess, 2, 1, None, 0)
        nested.append((window_guess(range(25), folds, found.logits[0], windows, "ridge") == labels).mean())
        best.append((guess == labels).mean(1).max())
    assert np.mean(best) > 0.56
    assert np.mean(nested) < 0.55


def test_a_given_width():
    found = choose_window([0, 1, 2, 3, 4], np.array([0.9, 0.2, 0.6, 0.5, 0.1]), 0.5, 2)
    assert (found.first, found.last) == (2, 3)
    assert found.reason == "highest mean weighted F1 of 2 neighbouring layers"


def test_the_width_is_that_of_the_layers_as_good_as_the_best():
    wafs = np.array([0.9, 0.2, 0.3, 0.58, 0.6, 0.59, 0.3, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1])
    found = choose_window(range(13), wafs, 0.03, None)
    assert (found.first, found.last) == (3, 5)
    assert "best layer, 4, with the neighbours within one standard error (3.0 points)" in found.reason


def test_a_window_holds_a_third_of_the_layers_at_most():
    wafs = np.array([0.5, 0.50, 0.51, 0.52, 0.55, 0.54, 0.53])
    found = choose_window(range(7), wafs, 1.0, None)
    assert (found.first, found.last) == (4, 5)
    assert "a third of the layers" in found.reason


def test_a_window_is_scored_by_the_probes_of_each_fold():
    folds = Folds(np.array([0, 0, 1, 1]), 2, "")
    logits = np.zeros((2, 4, 2), np.float32)
    logits[0, :, 1] = 5  # layer 1 says class 1, layer 2 class 0
    logits[1, :, 0] = 5
    one, two = (choose_window([1, 2], np.array(scores), 0, 1) for scores in ([1.0, 0.0], [0.0, 1.0]))
    assert window_guess([1, 2], folds, logits, [one, two], "logistic").tolist() == [1, 1, 0, 0]

"""Nested cross-validation: choices for a fold are made without that fold."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mertool.learning.folds import Folds, make_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.probing.logistic import BatchedLogisticRegression
from mertool.probing.nested_cv import PENALTIES, inner_pairs, probe_linear
from mertool.probing.progress import ProgressSpan
from mertool.probing.window import choose_nested_windows, predict_by_windows
from mertool.significance import ClassMeasure, NumberMeasure
from mertool.targets import Classes, Number

CPU = torch.device("cpu")
SILENT = ProgressSpan(lambda done, total: None)
COUNT, LAYERS, CHANNELS, CLASSES = 150, 4, 10, 3


@pytest.fixture(scope="module")
def data():
    """Labels written weakly into layers 1 and 2."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, COUNT)
    values = rng.normal(0, 1, (COUNT, LAYERS, CHANNELS)).astype(np.float32)
    values[:, 1:3] += 0.7 * rng.normal(0, 1, (CLASSES, CHANNELS))[labels][:, None]
    return values, labels


def make_partition(labels, count, seed=0):
    return make_folds(
        LabelledClips(tuple(f"c{n}" for n in range(len(labels))), labels, (None,) * len(labels)), count, seed
    )


def permute(labels, count):
    rng = np.random.default_rng(3)
    return np.stack([rng.permutation(labels) for _ in range(count)])


def probe(values, labels, partitions, *, estimator="logistic"):
    return probe_linear(
        values,
        labels,
        permute(labels, len(partitions)),
        partitions=partitions,
        target=Classes(tuple(map(str, range(CLASSES)))),
        estimator=estimator,
        device=CPU,
        progress=SILENT,
    )


def nested_windows(labels, folds, predictions, *, n_classes=CLASSES):
    """Windows of one layer by the predictions for one partition."""
    return choose_nested_windows(
        range(predictions.inner.shape[2]),
        labels,
        folds,
        inner=predictions.inner[0],
        outer=predictions.logits[0].argmax(-1),
        measure=ClassMeasure(n_classes),
        width=1,
        groups=None,
    )


def test_pairs_of_folds_that_are_left_out_together():
    assert inner_pairs(2) == []
    assert inner_pairs(3) == [(0, 1), (0, 2), (1, 2)]
    assert len(inner_pairs(5)) == 10
    for count in (6, 10, 24):
        pairs = inner_pairs(count)
        assert len(pairs) == 2 * count
        assert {len([pair for pair in pairs if fold in pair]) for fold in range(count)} == {4}


@pytest.mark.parametrize("estimator", list(PENALTIES))
def test_planted_layers_are_predicted_and_permuted_labels_are_not(data, estimator):
    values, labels = data
    predictions = probe(values, labels, [make_partition(labels, 5), make_partition(labels, 5, 1)], estimator=estimator)
    accuracy = (predictions.logits.argmax(-1) == labels).mean(-1)
    assert accuracy.shape == (2, LAYERS)
    assert (accuracy[:, 1:3] > 0.6).all()
    assert (accuracy[:, [0, 3]] < 0.5).all()
    control_labels = permute(labels, 2)[:, None]  # each partition has permuted labels of its own
    assert abs((predictions.control_logits.argmax(-1) == control_labels).mean() - 1 / CLASSES) < 0.1
    assert predictions.n_unconverged == 0


@pytest.mark.parametrize("estimator", list(PENALTIES))
@pytest.mark.parametrize("fold", [0, 3])
def test_choices_for_a_fold_do_not_depend_on_its_labels(data, estimator, fold):
    values, labels = data
    folds = make_partition(labels, 5)
    wrong = np.where(folds.fold_of == fold, (labels + 1) % CLASSES, labels)
    with_labels, with_wrong = (probe(values, y, [folds], estimator=estimator) for y in (labels, wrong))
    assert with_labels.penalties[0, fold].tolist() == with_wrong.penalties[0, fold].tolist()
    assert (with_labels.inner[0, fold] == with_wrong.inner[0, fold]).mean() > 0.995  # rounding
    windows = [
        nested_windows(y, folds, predictions)[fold] for y, predictions in ((labels, with_labels), (wrong, with_wrong))
    ]
    assert windows[0] == windows[1]
    rows = folds.held_out(fold)
    np.testing.assert_allclose(with_labels.logits[0][:, rows], with_wrong.logits[0][:, rows], atol=0.02)


def test_inner_predictions_are_of_neighbouring_folds(data):
    values, labels = data
    folds = make_partition(labels, 6)
    inner = probe(values, labels, [folds]).inner[0]
    for fold in range(6):
        scored_folds = set(folds.fold_of[np.flatnonzero(inner[fold, 0] >= 0)])
        assert scored_folds == {(fold + step) % 6 for step in (-2, -1, 1, 2)}


def test_the_penalty_is_the_one_of_the_least_inner_loss(data):
    """One fold and layer in a plain loop: fits without it and each neighbour, scored on the neighbour."""
    values, labels = data
    folds = make_partition(labels, 5)
    x, y = torch.as_tensor(values).transpose(0, 1), torch.as_tensor(labels)
    losses = []
    for inverse_penalty in PENALTIES["logistic"]:
        total = 0.0
        for neighbour in range(1, 5):
            train_masks = torch.as_tensor(~np.isin(folds.fold_of, (0, neighbour))).float()[None]
            solver = BatchedLogisticRegression.from_features(
                x[[1]].contiguous(), y[None], train_masks, n_classes=CLASSES
            )
            logits = solver.logits(solver.solve(inverse_penalty).weights)[0, 0].T
            rows = folds.held_out(neighbour)
            total += float(torch.nn.functional.cross_entropy(logits[rows], y[rows], reduction="sum"))
        losses.append(total)
    chosen = probe(values, labels, [folds]).penalties[0, 0, 1]
    assert chosen == PENALTIES["logistic"][int(np.argmin(losses))]


def test_two_folds_have_a_fixed_penalty(data):
    values, labels = data
    predictions = probe(values, labels, [make_partition(labels, 2)])
    assert len(np.unique(predictions.penalties)) == 1
    assert (predictions.inner == -1).all()


def test_layers_in_chunks_give_the_same_predictions(data, monkeypatch):
    values, labels = data
    folds = [make_partition(labels, 3)]
    together = probe(values, labels, folds)
    monkeypatch.setattr("mertool.probing.nested_cv.CPU_BYTES", 1)
    by_layer = probe(values, labels, folds)
    np.testing.assert_allclose(together.logits, by_layer.logits, atol=0.02)
    assert (together.penalties == by_layer.penalties).all()


def test_the_best_of_many_useless_layers_scores_at_chance_when_nested():
    """The best score of the curve is above chance because it is the best; the nested window's is not."""
    rng = np.random.default_rng(0)
    nested, best = [], []
    for seed in range(3):
        values = rng.normal(0, 1, (120, 25, 6)).astype(np.float32)
        labels = rng.permutation(np.arange(120) % 2)
        folds = make_partition(labels, 5, seed)
        predictions = probe_linear(
            values,
            labels,
            labels[None],
            partitions=[folds],
            target=Classes(("0", "1")),
            estimator="ridge",
            device=CPU,
            progress=SILENT,
        )
        windows = nested_windows(labels, folds, predictions, n_classes=2)
        logits = predictions.logits[0]
        predicted = predict_by_windows(
            range(25), folds, logits, windows=windows, estimator="ridge", target=Classes(("0", "1"))
        )
        nested.append((predicted == labels).mean())
        best.append((logits.argmax(-1) == labels).mean(1).max())
    assert np.mean(best) > 0.56
    assert np.mean(nested) < 0.55


# ---------------------------------------------------------------- numbers


def draw_numbers(n_clips=120, seed=0):
    """Features of three layers, of which the second carries the numbers, and the numbers."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (n_clips, 3, 8)).astype(np.float32)
    numbers = 4.0 + values[:, 1] @ rng.normal(0, 1, 8) + rng.normal(0, 0.5, n_clips)
    return values, numbers


def probe_numbers(values, numbers, folds):
    return probe_linear(
        values,
        numbers,
        permute(numbers, 1),
        partitions=[folds],
        target=Number("valence"),
        estimator="ridge",
        device=CPU,
        progress=SILENT,
    )


def test_ridge_regression_of_numbers_is_scikit_learns():
    """The outer predictions, and the penalty by the folds that an outer fold leaves: all pairs of four folds."""
    values, numbers = draw_numbers()
    folds = Folds(np.arange(120) % 4, 4, "made")
    found = probe_numbers(values, numbers, folds)
    for layer in range(3):
        x = values[:, layer].astype(np.float64)

        def predict(rows, held_out, penalty, x=x):
            model = make_pipeline(StandardScaler(), Ridge(alpha=penalty)).fit(x[rows], numbers[rows])
            return model.predict(x[held_out])

        for fold in range(4):
            errors = []
            for penalty in PENALTIES["ridge"]:
                inner = [
                    (np.flatnonzero((folds.fold_of != fold) & (folds.fold_of != other)), folds.held_out(other))
                    for other in range(4)
                    if other != fold
                ]
                residuals = [numbers[rows] - predict(train, rows, penalty) for train, rows in inner]
                errors.append(np.square(np.concatenate(residuals)).sum())
            penalty = PENALTIES["ridge"][int(np.argmin(errors))]
            assert found.penalties[0, fold, layer] == pytest.approx(penalty)
            rows = folds.held_out(fold)
            expected = predict(folds.train(fold), rows, penalty)
            np.testing.assert_allclose(found.logits[0, layer, rows, 0], expected, atol=2e-3)


def test_nested_windows_of_numbers_are_chosen_by_ccc():
    values, numbers = draw_numbers()
    folds = Folds(np.arange(120) % 4, 4, "made")
    found = probe_numbers(values, numbers, folds)
    windows = choose_nested_windows(
        range(3),
        numbers,
        folds,
        inner=found.inner[0],
        outer=found.logits[0, ..., 0],
        measure=NumberMeasure(),
        width=1,
        groups=None,
    )
    assert [(window.first, window.last) for window in windows] == [(1, 1)] * 4
    predicted = predict_by_windows(
        range(3), folds, found.logits[0], windows=windows, estimator="ridge", target=Number("valence")
    )
    np.testing.assert_array_equal(predicted, found.logits[0, 1, :, 0])
    # Each fold's own clips have no inner prediction.
    assert np.isnan(found.inner[0, 2][:, folds.held_out(2)]).all()
    assert np.isfinite(found.inner[0, 2][:, folds.train(2)]).all()

"""Linear probes of all layers under nested cross-validation.

Penalties, and later windows, are chosen without the clips that score them. The outer probe of fold i trains on the
other folds. Its penalty is chosen by inner probes that were trained without i and a neighbour j (cyclic distance at
most 2) and are scored on fold j, for all such j. So inner training sets consist of outer folds, too: they are
stratified and speaker-disjoint where those are, and a fit without {i, j} serves both i and j. With two folds nothing is
left to choose on, and the penalty is fixed.

A number is probed by ridge regression.

Shapes: S partitions into F folds, L layers (B of them at a time), N clips, D channels, C outputs (the
classes, or 1 for a number).
"""

from itertools import combinations

import numpy as np
import torch

from mertool.learning.folds import Folds
from mertool.probing.lbfgs import MEMORY
from mertool.probing.logistic import BatchedLogisticRegression
from mertool.probing.prediction_table import PredictionTable, ProbeDesign, ProbePredictions, TrainingSet
from mertool.probing.progress import ProgressSpan
from mertool.probing.ridge import Ridge, ridge_targets
from mertool.targets import Target

# From the strongest penalty to the weakest, so that ties go to the stronger. Of logistic regression they are
# scikit-learn's C, the inverse.
PENALTIES = {
    "logistic": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "ridge": tuple(float(f"{10 ** (6 - step / 4):.3g}") for step in range(25)),  # 1e6 to 1
}
TWO_FOLD_PENALTY = {"logistic": 1e-2, "ridge": 1e3}
MAX_FOLD_DISTANCE = 2
CPU_BYTES = 1 << 29  # memory for the features and weights of layers that are fitted together


def inner_pairs(n_folds: int) -> list[tuple[int, int]]:
    """Return the pairs of folds that inner probes leave out together.

    >>> inner_pairs(4), len(inner_pairs(10))
    ([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], 20)
    """
    if n_folds <= 2:
        return []
    pairs = combinations(range(n_folds), 2)
    return [(i, j) for i, j in pairs if min(j - i, n_folds - j + i) <= MAX_FOLD_DISTANCE]


def probe_linear(
    values: np.ndarray,
    labels: np.ndarray,
    control_labels: np.ndarray,
    *,
    partitions: list[Folds],
    target: Target,
    estimator: str,
    device: torch.device,
    progress: ProgressSpan,
) -> ProbePredictions:
    """Probe every layer of features (N, L, D) for labels (N,), and with the same penalties for permuted labels (S, N).

    Each of the S partitions has permuted labels of its own. `estimator` is `logistic` or `ridge`.
    """
    training_sets = _training_sets(partitions)
    nested = any(not training_set.is_outer for training_set in training_sets)
    design = ProbeDesign(
        labels=torch.as_tensor(labels, device=device),
        control_labels=torch.as_tensor(control_labels, device=device),
        partitions=partitions,
        training_sets=training_sets,
        target=target,
        estimator=estimator,
        penalties=PENALTIES[estimator] if nested else (TWO_FOLD_PENALTY[estimator],),
    )
    table = PredictionTable.empty(design, n_layers=values.shape[1])
    chunks = layer_chunks(values.shape[1], _floats_per_layer(values.shape, design), device)
    fit = _fit_logistic if estimator == "logistic" else _fit_ridge
    for layers, span in zip(chunks, progress.split([1] * len(chunks)), strict=True):
        features = torch.as_tensor(values[:, layers], device=device).transpose(0, 1).contiguous()
        fit(features, design, table, layers=layers, progress=span)
    return table.with_best_penalties()


def layer_chunks(n_layers: int, floats_per_layer: int, device: torch.device) -> list[slice]:
    """Return the layers in groups of about one size that fit the memory, if each needs so many float32 numbers."""
    max_bytes = CPU_BYTES if device.type == "cpu" else CPU_BYTES << 5
    n_chunks = -(-n_layers // max(1, max_bytes // (4 * floats_per_layer)))
    size = -(-n_layers // n_chunks)
    return [slice(start, min(start + size, n_layers)) for start in range(0, n_layers, size)]


def _training_sets(partitions: list[Folds]) -> list[TrainingSet]:
    """Return the outer and inner training sets of every partition."""
    return [
        TrainingSet(partition=number, held_out_folds=held_out, rows=np.flatnonzero(np.isin(folds.fold_of, held_out)))
        for number, folds in enumerate(partitions)
        for held_out in [*((fold,) for fold in range(folds.count)), *inner_pairs(folds.count)]
    ]


def _floats_per_layer(shape: tuple[int, ...], design: ProbeDesign) -> int:
    """Return how many float32 numbers a layer of features (N, L, D) and its probes need."""
    n_clips, _, n_channels = shape
    columns = (len(design.training_sets) + len(design.outer_sets)) * design.target.n_outputs
    if design.estimator == "ridge":
        return n_clips * (3 * n_channels + columns) + n_channels**2 * (design.partitions[0].count + 10)
    return n_clips * (3 * n_channels + 6 * columns) + n_channels * (2 * n_channels + 4 * MEMORY * columns)


def _fit_logistic(
    features: torch.Tensor, design: ProbeDesign, table: PredictionTable, *, layers: slice, progress: ProgressSpan
) -> None:
    """Fit every training set and, on permuted labels, every outer one; each penalty starts from the one before."""
    device, n_true = design.labels.device, len(design.training_sets)
    fitted_sets = [*design.training_sets, *design.outer_sets]
    rows_of = [torch.as_tensor(training_set.rows, device=device) for training_set in fitted_sets]
    train_masks = torch.ones(len(fitted_sets), len(design.labels), device=device)
    for mask, rows in zip(train_masks, rows_of, strict=True):
        mask[rows] = 0
    control = design.control_labels[[training_set.partition for training_set in design.outer_sets]]
    labels = torch.cat([design.labels.expand(n_true, -1), control])
    solver = BatchedLogisticRegression.from_features(features, labels, train_masks, n_classes=design.target.n_outputs)
    weights = None  # of the penalty before, from which the next one takes fewer steps
    for penalty, inverse_penalty in enumerate(design.penalties):
        solution = solver.solve(inverse_penalty, weights)
        weights = solution.weights
        table.n_unconverged += int((~solution.converged).sum())
        logits = solver.logits(weights)
        for number, (training_set, rows) in enumerate(zip(fitted_sets, rows_of, strict=True)):
            scores = logits[:, number, :, rows]
            table.add(scores, penalty, training_set, layers=layers, control=number >= n_true)
        progress(penalty + 1, len(design.penalties))


def _fit_ridge(
    features: torch.Tensor, design: ProbeDesign, table: PredictionTable, *, layers: slice, progress: ProgressSpan
) -> None:
    """Fit the same in closed form; the permuted labels are more columns of the same system."""
    device, done = design.labels.device, 0
    for partition, folds in enumerate(design.partitions):
        both_labels = (design.labels, design.control_labels[partition])
        targets = torch.cat([ridge_targets(labels, design.target.n_outputs) for labels in both_labels], 1)
        fold_of = torch.as_tensor(folds.fold_of, device=device)
        ridge = Ridge.from_features(features, targets, fold_of, n_folds=folds.count)
        for training_set in (each for each in design.training_sets if each.partition == partition):
            weights = ridge.solve(training_set.held_out_folds, design.penalties)
            scores = ridge.scores(weights, torch.as_tensor(training_set.rows, device=device))
            for penalty in range(len(design.penalties)):
                true, control = scores[:, penalty].split(design.target.n_outputs, 1)
                table.add(true, penalty, training_set, layers=layers)
                if training_set.is_outer:
                    table.add(control, penalty, training_set, layers=layers, control=True)
            done += 1
            progress(done, len(design.training_sets))

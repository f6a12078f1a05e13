"""Predictions of linear probes for every penalty and training set, and the choice of the penalties.

Shapes: S partitions into F folds, L layers (B of them at a time), N clips, C outputs (the classes, or 1 for a number),
P penalties.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mertool.learning.folds import Folds
from mertool.probing.ridge import ridge_targets
from mertool.targets import Target


@dataclass(frozen=True, kw_only=True)
class ProbePredictions:
    """Predictions of linear probes for clips that they were not trained on.

    Attributes:
        logits: Logits or decision values (S, L, N, C) by the probe that held out the clip's fold.
        control_logits: The same (S, L, N, C) of probes trained on permuted labels.
        inner: Predicted class or number (S, F, L, N) for the choices of an outer fold, by probes trained on neither
            that fold nor the clip's own; see `has_prediction` for where there is none.
        penalties: Chosen penalty (S, F, L).
        n_unconverged: Number of fits that stopped before the tolerance.
    """

    logits: np.ndarray
    control_logits: np.ndarray
    inner: np.ndarray
    penalties: np.ndarray
    n_unconverged: int


def has_prediction(predicted: np.ndarray) -> np.ndarray:
    """Return where inner probes have predicted a class, which is else -1, or a number, which is else NaN."""
    return predicted >= 0 if predicted.dtype.kind == "i" else np.isfinite(predicted)


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """All folds of a partition but one or two.

    Attributes:
        partition: Number of the partition.
        held_out_folds: One fold for an outer probe, two for an inner one.
        rows: The clips of the held-out folds, which the probe is scored on.
    """

    partition: int
    held_out_folds: tuple[int, ...]
    rows: np.ndarray

    @property
    def is_outer(self) -> bool:
        return len(self.held_out_folds) == 1


@dataclass(frozen=True, kw_only=True)
class ProbeDesign:
    """All that is fitted on every layer.

    Attributes:
        labels: Class indices or numbers (N,), on the device.
        control_labels: Permuted labels (S, N), on the device.
        partitions: The S partitions into folds.
        training_sets: Outer and inner ones.
        target: The kind of the labels.
        estimator: `logistic` or `ridge`.
        penalties: P penalties to choose from.
    """

    labels: torch.Tensor
    control_labels: torch.Tensor
    partitions: list[Folds]
    training_sets: list[TrainingSet]
    target: Target
    estimator: str
    penalties: tuple[float, ...]

    @property
    def outer_sets(self) -> list[TrainingSet]:
        return [training_set for training_set in self.training_sets if training_set.is_outer]


@dataclass(kw_only=True)
class PredictionTable:
    """Predictions of all probes by penalty, before the penalties are chosen.

    Attributes:
        design: All that is fitted.
        outer: Logits (P, S, L, N, C) of outer probes.
        control: The same of permuted labels.
        inner: Predicted classes or numbers (P, S, F, L, N) of inner probes.
        inner_loss: Summed loss (P, S, F, L) of inner probes for the choice of an outer fold's penalty.
        n_unconverged: Number of fits that stopped before the tolerance.
    """

    design: ProbeDesign
    outer: np.ndarray
    control: np.ndarray
    inner: np.ndarray
    inner_loss: np.ndarray
    n_unconverged: int = 0

    @classmethod
    def empty(cls, design: ProbeDesign, *, n_layers: int) -> "PredictionTable":
        """Return a table without predictions."""
        n_folds = max(folds.count for folds in design.partitions)
        n_clips, lead = len(design.labels), (len(design.penalties), len(design.partitions))
        # Probabilities of all penalties are the largest arrays of the stage, hence float32, and int16 for classes.
        outer = np.zeros((*lead, n_layers, n_clips, design.target.n_outputs), np.float32)
        fill, dtype = (-1, np.int16) if design.target.classes else (np.nan, np.float32)
        inner = np.full((*lead, n_folds, n_layers, n_clips), fill, dtype)
        return cls(design=design, outer=outer, control=outer.copy(), inner=inner, inner_loss=np.zeros(inner.shape[:-1]))

    def add(
        self,
        scores: torch.Tensor,
        penalty: int,
        training_set: TrainingSet,
        *,
        layers: slice,
        control: bool = False,
    ) -> None:
        """Enter the logits or decision values (B, C, n) of the held-out rows of a training set."""
        if training_set.is_outer:
            by_layer = (self.control if control else self.outer)[penalty, training_set.partition][layers]
            by_layer[:, training_set.rows] = scores.mT.cpu().numpy()
        else:
            self._add_inner(scores, penalty, training_set, layers=layers)

    def _add_inner(self, scores: torch.Tensor, penalty: int, training_set: TrainingSet, *, layers: slice) -> None:
        """Score each of the two left-out folds for the choice of the other one's penalty and window."""
        partition, rows = training_set.partition, training_set.rows
        fold_of = self.design.partitions[partition].fold_of[rows]
        loss = self._losses(scores, self.design.labels[torch.as_tensor(rows, device=scores.device)]).cpu().numpy()
        predicted = self.design.target.decide(scores.mT.cpu().numpy())
        for outer, scored in (training_set.held_out_folds, training_set.held_out_folds[::-1]):
            in_fold = fold_of == scored
            self.inner_loss[penalty, partition, outer, layers] += loss[:, in_fold].sum(1)
            self.inner[penalty, partition, outer][layers][:, rows[in_fold]] = predicted[:, in_fold]

    def _losses(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss (B, n) that penalties are chosen by: cross-entropy, or squared error of decision values."""
        labels = labels.expand(len(scores), -1)
        if self.design.estimator == "logistic":
            return torch.nn.functional.cross_entropy(scores, labels, reduction="none")
        return (scores - ridge_targets(labels, self.design.target.n_outputs).mT).square().sum(1)

    def with_best_penalties(self) -> ProbePredictions:
        """Return the predictions under the penalty of least inner loss for each partition, outer fold and layer."""
        best = self.inner_loss.argmin(0)  # (S, F, L)
        logits, control_logits = np.zeros_like(self.outer[0]), np.zeros_like(self.outer[0])
        layers = np.arange(best.shape[2])
        for number, folds in enumerate(self.design.partitions):
            for fold in range(folds.count):
                rows, penalty = folds.held_out(fold), best[number, fold]
                logits[number][:, rows] = self.outer[penalty, number, layers][:, rows]
                control_logits[number][:, rows] = self.control[penalty, number, layers][:, rows]
        return ProbePredictions(
            logits=logits,
            control_logits=control_logits,
            inner=np.take_along_axis(self.inner, best[None, ..., None], 0)[0],
            penalties=np.array(self.design.penalties)[best],
            n_unconverged=self.n_unconverged,
        )

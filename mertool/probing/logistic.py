"""Multinomial logistic regression, solved for many layers and training sets at once.

The objective for a training set of n clips is that of scikit-learn's `LogisticRegression(C=inverse_penalty)` on
features standardised by these clips, divided by C n:

    mean cross-entropy + |W|^2 / (2 C n),    the bias without a penalty.

A problem is solved when the largest entry of this objective's gradient is at most `TOLERANCE`; scikit-learn's `tol`
(1e-4 by default) is the same measure.

All problems advance together in one L-BFGS (Nocedal and Wright, 2006, algorithm 7.4; `lbfgs.py`), and those that are
solved leave. It is preconditioned by Boehning's bound on the Hessian (Boehning, 1992, "Multinomial logistic regression
algorithm"): X'X / (2 n) plus the penalty, for every class. Hidden states need that, because their channels are so
correlated that the plain method takes hundreds of steps. One Gram matrix X'X of all clips per layer serves all training
sets; it changes the path to the optimum and not the optimum.
"""

from dataclasses import dataclass

import torch

from mertool.devices import onednn_matmul, precise_device
from mertool.probing.lbfgs import LbfgsState, compute_logits
from mertool.probing.standardize import StandardizedFeatures, standardize

TOLERANCE = 1e-5
MAX_STEPS = 300
MAX_GRAM_CHANNELS = 6144  # of more channels, the factorisation costs more than the steps that it saves


@dataclass(frozen=True, kw_only=True)
class LogisticSolution:
    """Weights of K problems on each of B layers.

    Attributes:
        weights: (B, K, C, D + 1), of standardised features, the bias last.
        gradient: Largest absolute entry (B, K) of the gradient.
        steps: Steps taken (B, K).
        tolerance: The `gradient` that was asked for.
    """

    weights: torch.Tensor
    gradient: torch.Tensor
    steps: torch.Tensor
    tolerance: float

    @property
    def converged(self) -> torch.Tensor:
        """Mask (B, K) of the problems that reached the tolerance."""
        return self.gradient <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class BatchedLogisticRegression:
    """K logistic-regression problems on each of B layers.

    Attributes:
        scaled: Features of N clips, and their standardisation by each problem's training set.
        labels: Class indices (K, N).
        sample_weight: 1 / n for the n training clips of a problem, 0 for other clips; (K, N).
        n_training: n of each problem (K,).
        gram: X'X / N (B, D, D), or None where preconditioning does not pay.
        n_classes: C.
    """

    scaled: StandardizedFeatures
    labels: torch.Tensor
    sample_weight: torch.Tensor
    n_training: torch.Tensor
    gram: torch.Tensor | None
    n_classes: int

    @classmethod
    @onednn_matmul()
    def from_features(
        cls, features: torch.Tensor, labels: torch.Tensor, train_masks: torch.Tensor, *, n_classes: int
    ) -> "BatchedLogisticRegression":
        """Standardise features (B, N, D) for K problems with labels and training masks (1 = training clip), (K, N)."""
        scaled, n_training = standardize(features, train_masks), train_masks.sum(1)
        x = scaled.x
        return cls(
            scaled=scaled,
            labels=labels,
            sample_weight=train_masks / n_training[:, None],
            n_training=n_training,
            gram=x.mT @ x / x.shape[1] if x.shape[2] <= MAX_GRAM_CHANNELS else None,
            n_classes=n_classes,
        )

    @onednn_matmul()
    def solve(
        self, inverse_penalty: float, start: torch.Tensor | None = None, *, tolerance: float = TOLERANCE
    ) -> LogisticSolution:
        """Minimise the objective for C = `inverse_penalty`.

        `start` are the weights to begin with, such as the solution for another C; by default zeros. Problems that reach
        MAX_STEPS, or whose loss cannot be lowered in float32, keep the weights they have: see `converged`.
        """
        x = self.scaled.x
        if start is None:
            start = x.new_zeros(len(x), len(self.labels), self.n_classes, x.shape[2] + 1)
        solution = LogisticSolution(
            weights=start.clone(),
            gradient=x.new_full(start.shape[:2], torch.inf),
            steps=torch.zeros(start.shape[:2], dtype=torch.int64, device=x.device),
            tolerance=tolerance,
        )
        state = LbfgsState.start(
            self.scaled,
            start,
            labels=self.labels,
            sample_weight=self.sample_weight,
            l2=1 / (inverse_penalty * self.n_training),
            inverse_bound=self._inverse_bound(inverse_penalty),
        )
        for step in range(MAX_STEPS + 1):
            largest = state.gradient.abs().amax((2, 3))
            rows = state.layer_index[:, None], state.problem_index
            solution.weights[rows], solution.gradient[rows], solution.steps[rows] = state.weights, largest, step
            unsolved = (largest > tolerance) & ~state.line_search_failed
            if step == MAX_STEPS or not bool(unsolved.any()):
                break
            state = state.drop_solved(unsolved)
            state.advance()
        return solution

    def logits(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, K, C, N) of all clips."""
        return compute_logits(self.scaled, weights)

    def _inverse_bound(self, inverse_penalty: float) -> torch.Tensor | None:
        """Return the inverse (B, D, D) of the bound on the Hessian, or None if the bound is singular in float32."""
        if self.gram is None:
            return None
        bound = self.gram / 2
        bound.diagonal(dim1=1, dim2=2).add_(1 / (inverse_penalty * float(self.n_training.mean())))
        factor, info = torch.linalg.cholesky_ex(bound.to(precise_device(bound.device)))
        return None if bool(info.any()) else torch.cholesky_inverse(factor).to(bound.device)

"""Multinomial logistic regression, solved for many layers and training parts at once.

The objective of a training part of n clips is scikit-learn's (`LogisticRegression(C=strength)` on features
standardised by these clips), divided by C n: mean cross-entropy + |W|^2 / (2 C n), the bias free. So C weighs the
*sum* of the losses. A problem is solved when the largest entry of this objective's gradient is at most
`TOLERANCE`; scikit-learn's `tol` (1e-4 by default) is the same measure.

All problems advance together in one L-BFGS (Nocedal and Wright, 2006, algorithm 7.4), each with its own step
length; those that are solved leave. It starts from Boehning's bound on the Hessian (1992), half the Gram matrix plus
the penalty, which hidden states need: their channels are so correlated that the bare method takes hundreds of
steps. One Gram matrix per layer, of all clips, serves all training parts: it steers the way, not the optimum.
Logits are linear in the weights, so the line search costs no product with the features.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from mertool.probing.product import gram_of, product
from mertool.probing.standardize import StandardizedFeatures, scale

TOLERANCE = 1e-5
MOST_STEPS = 300
MEMORY = 8  # pairs of steps and gradients that L-BFGS keeps
MOST_CHANNELS = 6144  # above this the factorisation costs more than the steps it saves
ARMIJO, ROUNDING = 1e-4, 1e-6


@dataclass(frozen=True)
class Solution:
    """Weights with the bias last (B, K, C, D + 1), the largest gradient entry and the steps taken, both (B, K)."""

    theta: torch.Tensor
    gradient: torch.Tensor
    steps: torch.Tensor
    tolerance: float

    @property
    def converged(self) -> torch.Tensor:
        return self.gradient <= self.tolerance


class BatchedLogisticRegression:
    """K problems on each of B layers: features (B, N, D); labels and training parts (1 = in it), both (K, N)."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, trains: torch.Tensor, classes: int):
        self.scaled, self.classes = scale(features, trains), classes
        self.labels, self.share = labels, trains / trains.sum(1, keepdim=True)
        self.sizes = trains.sum(1)
        x = self.scaled.x
        self.gram = gram_of(x) / x.shape[1] if x.shape[2] <= MOST_CHANNELS else None

    def solve(self, strength: float, start: torch.Tensor | None = None, tolerance: float = TOLERANCE) -> Solution:
        """The optimum for C = `strength`; `start` is the solution for another C, or None for zeros."""
        x = self.scaled.x
        layers, problems = len(x), len(self.labels)
        if start is None:
            start = x.new_zeros(layers, problems, self.classes, x.shape[2] + 1)
        every = torch.arange(problems, device=x.device).expand(layers, -1)
        state = _State.begin(self, every, start, strength)
        found = Solution(start.clone(), x.new_full((layers, problems), torch.inf), torch.zeros_like(every), tolerance)
        for step in range(MOST_STEPS + 1):
            largest = state.gradient.abs().amax((2, 3))
            place = state.layer[:, None], state.of
            found.theta[place], found.gradient[place], found.steps[place] = state.theta, largest, step
            left = (largest > tolerance) & ~state.stuck
            if step == MOST_STEPS or not bool(left.any()):
                break
            counts = left.sum(1)
            if int(counts.max()) < left.shape[1] or int(counts.min()) == 0:
                layer = torch.nonzero(counts)[:, 0]
                order = left[layer].int().argsort(dim=1, descending=True, stable=True)
                state = state.pick(layer, order[:, : int(counts.max())])
            state.advance()
        return found

    def logits(self, theta: torch.Tensor) -> torch.Tensor:
        """(B, K, C, N) of all clips."""
        return _logits(self.scaled, theta)

    def preconditioner(self, strength: float) -> torch.Tensor | None:
        """Inverse (B, D, D) of the bound on the Hessian, or None where it does not pay."""
        if self.gram is None:
            return None
        penalty = 1 / (strength * float(self.sizes.mean()))
        bound = self.gram / 2
        bound.diagonal(dim1=1, dim2=2).add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(bound)
        return None if bool(failed.any()) else torch.cholesky_inverse(factor)


def _logits(scaled: StandardizedFeatures, theta: torch.Tensor) -> torch.Tensor:
    """Logits (B, K, C, N)."""
    weight, bias = scaled.fold_in(theta[..., :-1], theta[..., -1])
    logits = product(weight.flatten(1, 2), scaled.x).add_(bias.flatten(1)[..., None])
    return logits.view(*bias.shape, -1)


@dataclass
class _State:
    """The problems still at work: `layer` (B,) and `of` (B, K) say which they are.

    inverse (B, D, D) is the preconditioner; theta and gradient are (B, K, C, D + 1), loss (B, K).
    """

    scaled: StandardizedFeatures
    inverse: torch.Tensor | None
    layer: torch.Tensor
    of: torch.Tensor
    share: torch.Tensor
    labels: torch.Tensor
    decay: torch.Tensor
    theta: torch.Tensor
    logits: torch.Tensor
    loss: torch.Tensor
    gradient: torch.Tensor
    stuck: torch.Tensor
    preconditioned: torch.Tensor
    pairs: "tuple[_Pair, ...]" = ()

    @classmethod
    def begin(
        cls, problem: BatchedLogisticRegression, of: torch.Tensor, theta: torch.Tensor, strength: float
    ) -> "_State":
        layer = torch.arange(len(of), device=of.device)
        scaled = problem.scaled
        share, labels = problem.share[of], problem.labels[of][:, :, None]
        decay = 1 / (strength * problem.sizes[of])
        logits = _logits(scaled, theta)
        entropy, residual = _entropy(logits, labels, share)
        loss = entropy + decay * theta[..., :-1].square().sum((2, 3)) / 2
        stuck = torch.zeros_like(of, dtype=torch.bool)
        inverse = problem.preconditioner(strength)
        state = cls(scaled, inverse, layer, of, share, labels, decay, theta, logits, loss, theta, stuck, theta)
        state.gradient = state._gradient(residual)
        return state

    def pick(self, layers: torch.Tensor, chosen: torch.Tensor) -> "_State":
        """The state of some layers (B',), and of the problems `chosen` (B', K') of each."""
        rows = layers[:, None]
        names = ("of", "share", "labels", "decay", "theta", "logits", "loss", "gradient", "stuck", "preconditioned")
        new: dict[str, Any] = {name: getattr(self, name)[rows, chosen] for name in names}
        pairs = tuple(_Pair(*(value[rows, chosen] for value in pair.values())) for pair in self.pairs)
        inverse = self.inverse
        if inverse is not None and len(layers) < len(inverse):
            inverse = inverse[layers]
        scaled = self.scaled.pick(layers, chosen)
        return replace(self, scaled=scaled, inverse=inverse, layer=self.layer[layers], pairs=pairs, **new)

    def advance(self) -> None:
        """One step of L-BFGS for every problem."""
        precondition = self._preconditioned()
        if self.pairs:
            self.pairs[-1].scaled_change = precondition - self.preconditioned
        self.preconditioned = precondition
        direction = self._direction(precondition)
        slope = _dot(self.gradient, direction)
        moved = _logits(self.scaled, direction)
        length, logits, residual, loss = self._search(direction, moved, slope)
        step = length[..., None, None] * direction
        self.theta, self.logits, self.loss = self.theta + step, logits, loss
        before, self.gradient = self.gradient, self._gradient(residual)
        change = self.gradient - before
        curvature = _dot(step, change)
        # A pair without curvature (rounding, or a step of length 0) counts for nothing.
        use = curvature > 1e-10 * (_dot(step, step) * _dot(change, change)).sqrt()
        weight = torch.where(use, curvature, torch.inf).reciprocal()
        self.pairs = (*self.pairs, _Pair(step, change, change, weight))[-MEMORY:]

    def _direction(self, precondition: torch.Tensor) -> torch.Tensor:
        """Two loops over the pairs; the preconditioner is linear, so it was applied to each change already."""
        left, result, factors = self.gradient.clone(), precondition.clone(), []
        for pair in reversed(self.pairs):
            factor = (pair.weight * _dot(pair.step, left))[..., None, None]
            left -= factor * pair.change
            result -= factor * pair.scaled_change
            factors.append(factor)
        if self.pairs:
            last = self.pairs[-1]
            size = last.weight * _dot(last.change, last.scaled_change)
            result *= torch.where(size > 0, 1 / size.clamp_min(1e-30), torch.ones_like(size))[..., None, None]
        for pair, factor in zip(self.pairs, reversed(factors), strict=True):
            back = (pair.weight * _dot(pair.change, result))[..., None, None]
            result += pair.step * (factor - back)
        return -result

    def _preconditioned(self) -> torch.Tensor:
        """The gradient times the inverse bound; the bias stands apart, since features are centred."""
        if self.inverse is None:
            return self.gradient.clone()
        weight = self.gradient[..., :-1]
        found = product(weight.flatten(1, 2), self.inverse).view(weight.shape)  # it is symmetric
        return torch.cat([found, 2 * self.gradient[..., -1:]], -1)

    def _search(
        self, direction: torch.Tensor, moved: torch.Tensor, slope: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Backtracking from length 1 under Armijo's rule, each problem for itself.

        Where the expected gain is below rounding, a smaller slope at the new place is accepted instead
        (Hager and Zhang, 2005). Returns length (B, K), logits, residuals (B, K, C, N) and loss (B, K).
        """
        weight, turn = self.theta[..., :-1], direction[..., :-1]
        mixed, square = _dot(weight, turn), _dot(turn, turn)
        length = torch.where(self.stuck, 0.0, torch.ones_like(slope))
        for _ in range(12):
            logits = torch.addcmul(self.logits, length[..., None, None], moved)
            entropy, residual = _entropy(logits, self.labels, self.share)
            decay = self.decay * length * (mixed + length * square / 2)
            loss = entropy + self.decay * weight.square().sum((2, 3)) / 2 + decay
            new_slope = _dot(residual, moved) + self.decay * (mixed + length * square)
            good = loss <= self.loss + ARMIJO * length * slope
            good |= (loss <= self.loss + ROUNDING * self.loss.abs()) & (new_slope.abs() <= 0.9 * slope.abs())
            good |= length == 0
            if bool(good.all()):
                break
            bend = 2 * (loss - self.loss - length * slope)
            shorter = torch.where(bend > 0, -slope * length.square() / bend.clamp_min(1e-30), 0.5 * length)
            length = torch.where(good, length, torch.clamp(shorter, 0.1 * length, 0.5 * length))
        else:
            self.stuck = self.stuck | ~good
        return length, logits, residual, loss

    def _gradient(self, residual: torch.Tensor) -> torch.Tensor:
        total = residual.sum(-1, keepdim=True)
        sums = product(residual.flatten(1, 2), self.scaled.x.mT).view(*residual.shape[:3], -1)
        weight = (sums - total * self.scaled.centre[:, :, None]) * self.scaled.rate[:, :, None]
        return torch.cat([weight + self.decay[..., None, None] * self.theta[..., :-1], total], -1)


@dataclass
class _Pair:
    """A step, the change of gradient it made, that change preconditioned (B, K, C, D + 1), and 1 / curvature (B, K)."""

    step: torch.Tensor
    change: torch.Tensor
    scaled_change: torch.Tensor
    weight: torch.Tensor

    def values(self) -> tuple[torch.Tensor, ...]:
        return self.step, self.change, self.scaled_change, self.weight


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(B, K) of two (B, K, ., .)."""
    return torch.linalg.vecdot(a.flatten(2), b.flatten(2))


def _entropy(logits: torch.Tensor, labels: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy (B, K) over the training parts, and its derivative by the logits (B, K, C, N)."""
    largest = logits.amax(2, keepdim=True)
    residual = (logits - largest).exp_()
    total = residual.sum(2, keepdim=True)
    true = logits.gather(2, labels)
    entropy = ((total.log() + largest - true).squeeze(2) * share).sum(-1)
    residual *= share[:, :, None] / total
    residual.scatter_add_(2, labels, -share[:, :, None])
    return entropy, residual

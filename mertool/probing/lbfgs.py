"""L-BFGS (Nocedal and Wright, 2006, algorithm 7.4) on many logistic-regression problems at once.

All problems take their steps together, each with a step length of its own.

Shapes: B layers, K problems on each, C classes, D channels, N clips. Weights and gradients are (B, K, C, D + 1) with
the bias last; they are those of standardised features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from mertool.probing.standardize import StandardizedFeatures

MEMORY = 8  # pairs of steps and gradient changes that are kept
MAX_LINE_SEARCH_STEPS = 12
ARMIJO = 1e-4  # least decrease of the loss, as a share of what the slope promises
CURVATURE = 0.9  # largest slope after the step, as a share of the slope before it
ROUNDING = 1e-6  # relative error of a float32 loss
MIN_CURVATURE = 1e-10  # least cosine between a step and its gradient change


def compute_logits(scaled: StandardizedFeatures, weights: torch.Tensor) -> torch.Tensor:
    """Return the logits (B, K, C, N) of all clips."""
    weight, bias = scaled.fold_into_linear(weights[..., :-1], weights[..., -1])
    logits = (weight.flatten(1, 2) @ scaled.x.mT).add_(bias.flatten(1)[..., None])
    return logits.view(*bias.shape, -1)


@dataclass(frozen=True)
class _Pair:
    """One past step of L-BFGS.

    Attributes:
        step: Change of the weights (B, K, C, D + 1).
        gradient_change: Change of the gradient.
        preconditioned_change: The preconditioner times the change of the gradient.
        inverse_curvature: 1 / (step . gradient_change), (B, K); 0 for a pair that is ignored.
    """

    step: torch.Tensor
    gradient_change: torch.Tensor
    preconditioned_change: torch.Tensor
    inverse_curvature: torch.Tensor

    def select(self, layers: torch.Tensor, problems: torch.Tensor) -> "_Pair":
        return _Pair(*(getattr(self, field.name)[layers, problems] for field in fields(self)))


# Fields of LbfgsState with an entry for each problem.
BY_PROBLEM = (
    *("problem_index", "sample_weight", "labels", "l2", "weights", "gradient", "logits", "loss"),
    *("preconditioned_gradient", "line_search_failed"),
)


@dataclass(kw_only=True)
class LbfgsState:
    """The problems that are still being solved, at their present weights.

    Attributes:
        scaled: Features and their standardisation.
        inverse_bound: Preconditioner (B, D, D), or None for the identity.
        layer_index: Number (B,) of each layer among all layers.
        problem_index: Number (B, K) of each problem among all problems.
        sample_weight: 1 / n for the n training clips of a problem, 0 for other clips; (B, K, N).
        labels: Class indices (B, K, 1, N).
        l2: Factor (B, K) of |W|^2 / 2 in the objective.
        weights, gradient: (B, K, C, D + 1).
        logits: (B, K, C, N).
        loss: Objective (B, K).
        preconditioned_gradient: Preconditioner times gradient.
        line_search_failed: Problems (B, K) whose loss cannot be lowered any more in float32.
        pairs: The latest steps, oldest first.
    """

    scaled: StandardizedFeatures
    inverse_bound: torch.Tensor | None
    layer_index: torch.Tensor
    problem_index: torch.Tensor
    sample_weight: torch.Tensor
    labels: torch.Tensor
    l2: torch.Tensor
    weights: torch.Tensor
    gradient: torch.Tensor
    logits: torch.Tensor
    loss: torch.Tensor
    preconditioned_gradient: torch.Tensor
    line_search_failed: torch.Tensor
    pairs: tuple[_Pair, ...] = ()

    @classmethod
    def start(
        cls,
        scaled: StandardizedFeatures,
        weights: torch.Tensor,
        *,
        labels: torch.Tensor,
        sample_weight: torch.Tensor,
        l2: torch.Tensor,
        inverse_bound: torch.Tensor | None,
    ) -> "LbfgsState":
        """Return the state of all problems at `weights`, with labels and sample weights (K, N) and `l2` (K,)."""
        n_layers, n_problems = weights.shape[:2]
        problems = torch.arange(n_problems, device=weights.device).expand(n_layers, -1)
        labels, sample_weight, l2 = labels[problems][:, :, None], sample_weight[problems], l2[problems]
        logits = compute_logits(scaled, weights)
        entropy, residual = _cross_entropy(logits, labels, sample_weight)
        gradient = _gradient(scaled, residual, l2=l2, weights=weights)
        return cls(
            scaled=scaled,
            inverse_bound=inverse_bound,
            layer_index=torch.arange(n_layers, device=weights.device),
            problem_index=problems,
            sample_weight=sample_weight,
            labels=labels,
            l2=l2,
            weights=weights,
            gradient=gradient,
            logits=logits,
            loss=entropy + l2 * weights[..., :-1].square().sum((2, 3)) / 2,
            preconditioned_gradient=_precondition(inverse_bound, gradient),
            line_search_failed=torch.zeros_like(problems, dtype=torch.bool),
        )

    def drop_solved(self, unsolved: torch.Tensor) -> "LbfgsState":
        """Return the state without the problems that are solved, given a mask (B, K) of the others.

        All layers must have equally many problems, so some solved ones stay; their weights improve further.
        """
        counts = unsolved.sum(1)
        most = int(counts.max())
        if most == unsolved.shape[1] and int(counts.min()) > 0:
            return self
        layers = torch.nonzero(counts)[:, 0]
        unsolved_first = unsolved[layers].int().argsort(dim=1, descending=True, stable=True)
        return self._select(layers, unsolved_first[:, :most])

    def _select(self, layers: torch.Tensor, problems: torch.Tensor) -> "LbfgsState":
        """Return the state of some layers (B',) and of the problems (B', K') of each."""
        rows = layers[:, None]
        selected: dict[str, Any] = {name: getattr(self, name)[rows, problems] for name in BY_PROBLEM}
        inverse_bound = self.inverse_bound
        if inverse_bound is not None and len(layers) < len(inverse_bound):
            inverse_bound = inverse_bound[layers]
        return replace(
            self,
            scaled=self.scaled.select(layers, problems),
            inverse_bound=inverse_bound,
            layer_index=self.layer_index[layers],
            pairs=tuple(pair.select(rows, problems) for pair in self.pairs),
            **selected,
        )

    def advance(self) -> None:
        """Take one step of L-BFGS in every problem."""
        direction = _direction(self.gradient, self.preconditioned_gradient, self.pairs)
        length, logits, residual, loss = self._line_search(direction)
        step = length[..., None, None] * direction
        self.weights, self.logits, self.loss = self.weights + step, logits, loss
        gradient = _gradient(self.scaled, residual, l2=self.l2, weights=self.weights)
        preconditioned = _precondition(self.inverse_bound, gradient)
        change = gradient - self.gradient
        curvature = _dot(step, change)
        # A pair without curvature (rounding, or a step of length 0) would make the next direction useless.
        valid = curvature > MIN_CURVATURE * (_dot(step, step) * _dot(change, change)).sqrt()
        inverse_curvature = torch.where(valid, curvature, torch.inf).reciprocal()
        pair = _Pair(step, change, preconditioned - self.preconditioned_gradient, inverse_curvature)
        self.gradient, self.preconditioned_gradient = gradient, preconditioned
        self.pairs = (*self.pairs, pair)[-MEMORY:]

    def _line_search(self, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return step length (B, K), logits, residuals (both (B, K, C, N)) and loss (B, K) of each problem.

        Backtracking from length 1 under Armijo's rule. Where the expected decrease is below rounding, a smaller slope
        at the new weights is accepted instead (approximate Wolfe conditions; Hager and Zhang, 2005, section 2.1).
        Logits are linear in the weights, so that no length costs a product with the features.
        """
        slope, logits_direction = _dot(self.gradient, direction), compute_logits(self.scaled, direction)
        weight, turn = self.weights[..., :-1], direction[..., :-1]
        penalty = self.l2 * weight.square().sum((2, 3)) / 2
        dot, square = _dot(weight, turn), _dot(turn, turn)
        length = torch.where(self.line_search_failed, 0.0, torch.ones_like(slope))
        for _ in range(MAX_LINE_SEARCH_STEPS):
            logits = torch.addcmul(self.logits, length[..., None, None], logits_direction)
            entropy, residual = _cross_entropy(logits, self.labels, self.sample_weight)
            loss = entropy + penalty + self.l2 * length * (dot + length * square / 2)
            new_slope = _dot(residual, logits_direction) + self.l2 * (dot + length * square)
            accepted = loss <= self.loss + ARMIJO * length * slope
            equal = loss <= self.loss + ROUNDING * self.loss.abs()
            accepted |= equal & (new_slope.abs() <= CURVATURE * slope.abs())
            accepted |= length == 0
            if bool(accepted.all()):
                break
            # The minimum of the parabola through both losses and the slope, within a tenth to a half of the length.
            bend = 2 * (loss - self.loss - length * slope)
            shorter = torch.where(bend > 0, -slope * length.square() / bend.clamp_min(1e-30), 0.5 * length)
            length = torch.where(accepted, length, torch.clamp(shorter, 0.1 * length, 0.5 * length))
        else:
            self.line_search_failed = self.line_search_failed | ~accepted
        return length, logits, residual, loss


def _direction(gradient: torch.Tensor, preconditioned: torch.Tensor, pairs: Sequence[_Pair]) -> torch.Tensor:
    """Return minus the estimated inverse Hessian times the gradient: the two loops of algorithm 7.4.

    The preconditioner is linear, so it need not be applied between the loops: it was applied to the gradient and to
    each change of it.
    """
    remainder, result, factors = gradient.clone(), preconditioned.clone(), []
    for pair in reversed(pairs):
        factor = (pair.inverse_curvature * _dot(pair.step, remainder))[..., None, None]
        remainder -= factor * pair.gradient_change
        result -= factor * pair.preconditioned_change
        factors.append(factor)
    if pairs:
        last = pairs[-1]
        size = last.inverse_curvature * _dot(last.gradient_change, last.preconditioned_change)
        result *= torch.where(size > 0, 1 / size.clamp_min(1e-30), torch.ones_like(size))[..., None, None]
    for pair, factor in zip(pairs, reversed(factors), strict=True):
        correction = (pair.inverse_curvature * _dot(pair.gradient_change, result))[..., None, None]
        result += pair.step * (factor - correction)
    return -result


def _precondition(inverse_bound: torch.Tensor | None, gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient times the inverse of the bound on the Hessian; the bias has a bound of its own, 1/2."""
    if inverse_bound is None:
        return gradient.clone()
    weight = gradient[..., :-1]
    product = (weight.flatten(1, 2) @ inverse_bound).view(weight.shape)  # the bound is symmetric
    return torch.cat([product, 2 * gradient[..., -1:]], -1)


def _gradient(
    scaled: StandardizedFeatures, residual: torch.Tensor, *, l2: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of the objective from the derivative (B, K, C, N) of the loss by the logits."""
    total = residual.sum(-1, keepdim=True)
    sums = (residual.flatten(1, 2) @ scaled.x).view(*residual.shape[:3], -1)
    weight = (sums - total * scaled.mean[:, :, None]) * scaled.inv_std[:, :, None]
    return torch.cat([weight + l2[..., None, None] * weights[..., :-1], total], -1)


def _cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted cross-entropy (B, K) and its derivative by the logits (B, K, C, N).

    Written out, since softmax and log-softmax each would need a further copy of the logits.
    """
    largest = logits.amax(2, keepdim=True)
    residual = (logits - largest).exp_()
    total = residual.sum(2, keepdim=True)
    label_logits = logits.gather(2, labels)
    entropy = ((total.log() + largest - label_logits).squeeze(2) * sample_weight).sum(-1)
    residual *= sample_weight[:, :, None] / total
    residual.scatter_add_(2, labels, -sample_weight[:, :, None])
    return entropy, residual


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the dot product (B, K) of two (B, K, ., .)."""
    return torch.linalg.vecdot(a.flatten(2), b.flatten(2))

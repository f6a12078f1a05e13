"""Ridge regression in closed form: every training part that leaves out some folds, and every penalty, from one Gram.

The objective is scikit-learn's (`Ridge(alpha=penalty)` on features standardised by the training clips): squared
error + penalty |W|^2, the intercept free. Targets of +1 for a clip's class and -1 for the others make it
`RidgeClassifier`. The Gram matrix of a layer is summed once, fold by fold, and those of left-out folds are
taken off again (down-dating), so that a further training part costs no pass over the clips.
"""

from collections.abc import Sequence

import torch

from mertool.probing.product import gram_of, product
from mertool.probing.standardize import condition, deviation_of

# An eigen-decomposition gives all penalties at once. Of 1,024 channels it takes as long as so many Cholesky
# factorisations, one for each penalty.
EIGEN_FROM = {"cpu": 8, "cuda": 50}


def class_targets(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(N, C) of 1 for a clip's class and -1 for the others, from labels (N,)."""
    return 2 * torch.nn.functional.one_hot(labels, classes).float() - 1


class Ridge:
    """Sums by fold of features (B, N, D) with targets (N, T), for folds `fold_of` (N,) of 0 .. `count` - 1."""

    def __init__(self, features: torch.Tensor, targets: torch.Tensor, fold_of: torch.Tensor, count: int):
        self.fold_of, device = fold_of, features.device
        # Factors are of double precision, since Gram matrices of hidden states are nearly singular.
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.x = condition(features)[0]
        self.folds = [self._sums(self.x[:, fold_of == fold], targets[fold_of == fold]) for fold in range(count)]
        # In double precision a fold that is taken off again leaves nothing of itself behind.
        self.total = [part.to(self.dtype) for part in self.folds[0]]
        for fold in self.folds[1:]:
            for total, part in zip(self.total, fold, strict=True):
                total += part

    def _sums(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        """Clips (), sums of features (B, D) and targets (T,), products of features with targets (B, D, T), Gram."""
        count = torch.tensor(float(x.shape[1]), device=x.device)
        return [count, x.sum(1), y.sum(0), x.mT @ y, gram_of(x)]

    def solve(self, without: Sequence[int], penalties: Sequence[float]) -> torch.Tensor:
        """Weights for `x` with the intercept last (B, P, T, D + 1), trained on all folds but those of `without`."""
        left = [total.clone() for total in self.total]
        for fold in without:
            for part, taken in zip(left, self.folds[fold], strict=True):
                part -= taken
        count, x_sum, y_sum, cross, gram = left
        centre, target = x_sum / count, y_sum / count
        rate = deviation_of(gram.diagonal(dim1=1, dim2=2) / count - centre.square(), centre).reciprocal()
        gram -= count * centre[:, :, None] * centre[:, None]
        gram *= rate[:, :, None] * rate[:, None]
        cross = (cross - count * centre[..., None] * target) * rate[..., None]
        weight = _solve(gram, cross, penalties) * rate[:, None, :, None]
        bias = target - (centre[:, None, None] @ weight)[:, :, 0]
        return torch.cat([weight.mT, bias[..., None]], -1).to(self.x.dtype)

    def scores(self, weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Decision values (B, P, T, n) of some rows."""
        values = product(weights[..., :-1].flatten(1, 2), self.x[:, rows])
        return values.view(*weights.shape[:3], -1) + weights[..., -1:]


def _solve(gram: torch.Tensor, cross: torch.Tensor, penalties: Sequence[float]) -> torch.Tensor:
    """(gram + penalty I)^-1 cross for every penalty: (B, P, D, T)."""
    if len(penalties) >= EIGEN_FROM.get(gram.device.type, 8):
        return _solve_all(gram, cross, penalties)
    found = []
    for before, penalty in zip([0.0, *penalties], penalties, strict=False):
        gram.diagonal(dim1=1, dim2=2).add_(penalty - before)
        found.append(torch.cholesky_solve(cross, torch.linalg.cholesky(gram)))
    return torch.stack(found, 1)


def _solve_all(gram: torch.Tensor, cross: torch.Tensor, penalties: Sequence[float]) -> torch.Tensor:
    """The same by one eigen-decomposition: in float32, twice as fast, and refined once by its residual."""
    values, vectors = torch.linalg.eigh(gram.float())
    penalty = torch.tensor(penalties, dtype=gram.dtype, device=gram.device)[:, None, None]
    sizes = values.clamp_min(0)[:, None, :, None] + penalty.float()  # (B, P, D, 1)

    def divide(right: torch.Tensor) -> torch.Tensor:
        turned = _times(vectors.mT, right.float()) / sizes
        return _times(vectors, turned).to(gram.dtype)

    first = divide(cross[:, None].expand(-1, len(penalties), -1, -1))
    return first + divide(cross[:, None] - _times(gram, first) - penalty * first)


def _times(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A matrix (B, D, D) times (B, P, D, T), as one product for each layer."""
    layers, penalties, channels, targets = right.shape
    flat = right.transpose(1, 2).reshape(layers, channels, penalties * targets)
    return (matrix @ flat).view(layers, channels, penalties, targets).transpose(1, 2)

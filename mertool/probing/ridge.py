"""Ridge regression in closed form: every training set that leaves out some folds, and every penalty, from one Gram.

The objective is that of scikit-learn's `Ridge(alpha=penalty)` on features standardised by the training clips: squared
error + penalty |W|^2, the intercept without a penalty. With targets of +1 for a clip's class and -1 for the others it
is `RidgeClassifier`. The Gram matrix X'X of a layer is summed once, fold by fold; those of left-out folds are then
subtracted (down-dating), so that a further training set costs no pass over the clips.

Shapes: B layers, N clips, D channels, T targets, P penalties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mertool.devices import precise_device
from mertool.probing.standardize import robust_scale, safe_std

# From so many penalties on, one eigen-decomposition is faster than a Cholesky factorisation for each (1,024 channels).
EIGEN_FROM = {"cpu": 8, "cuda": 50}


def class_targets(labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Return targets (..., C) of 1 for the class of a clip and -1 for the others, from labels (...,)."""
    return 2 * torch.nn.functional.one_hot(labels, n_classes).float() - 1


def ridge_targets(labels: torch.Tensor, n_outputs: int) -> torch.Tensor:
    """Return the targets (..., n_outputs) of classes, or of numbers, which are their own: labels (...,)."""
    return labels[..., None].float() if labels.is_floating_point() else class_targets(labels, n_outputs)


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """Sums over some clips; enough to fit ridge regression on them.

    Attributes:
        count: Number of clips, ().
        features: Sum of the features (B, D).
        targets: Sum of the targets (T,).
        products: X'Y (B, D, T).
        gram: X'X (B, D, D).
    """

    count: torch.Tensor
    features: torch.Tensor
    targets: torch.Tensor
    products: torch.Tensor
    gram: torch.Tensor

    @classmethod
    def over(cls, x: torch.Tensor, targets: torch.Tensor) -> "_Sums":
        """Sum over the clips of features (B, n, D) and targets (n, T)."""
        count = torch.tensor(float(x.shape[1]), device=x.device)
        return cls(count=count, features=x.sum(1), targets=targets.sum(0), products=x.mT @ targets, gram=x.mT @ x)

    def copy(self) -> "_Sums":
        """Return a copy in double precision, on the device that has it."""
        device = precise_device(self.gram.device)
        return _Sums(**{name: value.to(device).to(torch.float64, copy=True) for name, value in vars(self).items()})

    def add_(self, sums: "_Sums", sign: int = 1) -> None:
        """Add the sums over further clips in place, or subtract them with `sign` -1."""
        for name, value in vars(self).items():
            value.add_(getattr(sums, name).to(value.device), alpha=sign)


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """Ridge regression on all folds of the clips but some, for B layers.

    Attributes:
        x: Robustly scaled features (B, N, D).
        folds: Sums over the clips of each fold, float32.
        total: Sums over all clips, in double precision (see `devices.precise_device`).
    """

    x: torch.Tensor
    folds: list[_Sums]
    total: _Sums

    @classmethod
    def from_features(
        cls, features: torch.Tensor, targets: torch.Tensor, fold_of: torch.Tensor, *, n_folds: int
    ) -> "Ridge":
        """Sum features (B, N, D) and targets (N, T) over each of the folds `fold_of` (N,), 0 to `n_folds` - 1."""
        x = robust_scale(features)[0]
        folds = [_Sums.over(x[:, fold_of == fold], targets[fold_of == fold]) for fold in range(n_folds)]
        # Double precision, since Gram matrices of hidden states are nearly singular, and so that a subtracted fold
        # leaves nothing behind.
        total = folds[0].copy()
        for sums in folds[1:]:
            total.add_(sums)
        return cls(x=x, folds=folds, total=total)

    def solve(self, held_out_folds: Sequence[int], penalties: Sequence[float]) -> torch.Tensor:
        """Return weights for `x`, the intercept last (B, P, T, D + 1), trained on all but the held-out folds."""
        train = self.total.copy()
        for fold in held_out_folds:
            train.add_(self.folds[fold], sign=-1)
        mean, target_mean = train.features / train.count, train.targets / train.count
        variance = train.gram.diagonal(dim1=1, dim2=2) / train.count - mean.square()
        inv_std = safe_std(variance, mean).reciprocal()
        gram = train.gram.sub_(train.count * mean[:, :, None] * mean[:, None])
        gram *= inv_std[:, :, None] * inv_std[:, None]
        products = (train.products - train.count * mean[..., None] * target_mean) * inv_std[..., None]
        weight = _solve(gram, products, penalties) * inv_std[:, None, :, None]
        bias = target_mean - (mean[:, None, None] @ weight)[:, :, 0]
        return torch.cat([weight.mT, bias[..., None]], -1).to(self.x)

    def scores(self, weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return decision values (B, P, T, n) of the clips in `rows` (n,)."""
        values = weights[..., :-1].flatten(1, 2) @ self.x[:, rows].mT
        return values.view(*weights.shape[:3], -1) + weights[..., -1:]


def _solve(gram: torch.Tensor, products: torch.Tensor, penalties: Sequence[float]) -> torch.Tensor:
    """Return (gram + penalty I)^-1 products for every penalty, (B, P, D, T); `gram` is overwritten."""
    if len(penalties) >= EIGEN_FROM.get(gram.device.type, 8):
        return _solve_by_eigenvectors(gram, products, penalties)
    weights, previous = [], 0.0
    for penalty in penalties:
        gram.diagonal(dim1=1, dim2=2).add_(penalty - previous)
        weights.append(torch.cholesky_solve(products, torch.linalg.cholesky(gram)))
        previous = penalty
    return torch.stack(weights, 1)


def _solve_by_eigenvectors(gram: torch.Tensor, products: torch.Tensor, penalties: Sequence[float]) -> torch.Tensor:
    """Return the same by one eigen-decomposition.

    It is made in float32, which takes half the time, and the solution is refined once by its residual in the precision
    of `gram` (iterative refinement).
    """
    values, vectors = torch.linalg.eigh(gram.float())
    penalty = torch.tensor(penalties, dtype=gram.dtype, device=gram.device)[:, None, None]
    eigenvalues = values.clamp_min(0)[:, None, :, None] + penalty.float()  # (B, P, D, 1)

    def solve(right: torch.Tensor) -> torch.Tensor:
        rotated = _times(vectors.mT, right.float()) / eigenvalues
        return _times(vectors, rotated).to(gram.dtype)

    first = solve(products[:, None].expand(-1, len(penalties), -1, -1))
    return first + solve(products[:, None] - _times(gram, first) - penalty * first)


def _times(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return a matrix (B, D, D) times (B, P, D, T), as one product for each layer."""
    n_layers, n_penalties, n_channels, n_targets = right.shape
    flat = right.transpose(1, 2).reshape(n_layers, n_channels, n_penalties * n_targets)
    return (matrix @ flat).view(n_layers, n_channels, n_penalties, n_targets).transpose(1, 2)

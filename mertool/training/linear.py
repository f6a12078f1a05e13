"""Multinomial logistic regression on standardised features, all folds in one L-BFGS."""

from dataclasses import dataclass

import numpy as np
import torch

STRENGTH = 0.1  # scikit-learn's C: the inverse of the L2 penalty
TOLERANCE = 1e-5  # largest entry of the gradient of the mean loss
MOST_STEPS = 200


@dataclass(frozen=True)
class Probes:
    """F probes: standardisation by each one's own training rows, then a linear layer.

    `mean`, `scale` (F, D), `weight` (F, D, C), `bias` (F, C).
    """

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(F, N, C) for features (N, D)."""
        scaled = self.weight * self.scale[:, :, None]
        return x @ scaled - self.mean[:, None] @ scaled + self.bias[:, None]


def fit_probes(x: torch.Tensor, labels: torch.Tensor, trains: torch.Tensor, classes: int) -> Probes:
    """Fit one probe per row of `trains` (F, N), 1 where an example of x (N, D) is in its training part.

    The penalty is fixed (C = 0.1), so nothing is chosen on other clips.
    """
    folds, sizes = len(trains), trains.sum(1)
    mean = (trains @ x) / sizes[:, None]
    variance = (trains @ x.square()) / sizes[:, None] - mean.square()
    # A channel that is constant up to rounding carries nothing: leave it as it is.
    varies = variance > 1e-10 + 1e-6 * mean.square()
    scale = torch.where(varies, variance, torch.ones_like(variance)).rsqrt()
    weight = torch.zeros(folds, x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(folds, classes, device=x.device, requires_grad=True)
    probes = Probes(mean, scale, weight, bias)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MOST_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = probes.logits(x)
        entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(folds), reduction="none")
        fit = (entropy.view(folds, -1) * trains).sum(1) / sizes
        penalty = weight.square().sum((1, 2)) / (2 * STRENGTH * sizes)
        loss = (fit + penalty).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Probes(mean, scale, weight.detach(), bias.detach())


def cross_validate(
    values: np.ndarray, labels: np.ndarray, fold_of: np.ndarray, classes: int, device: torch.device
) -> np.ndarray:
    """Logits (N, C) of each example by the probe of the fold that held it out, for features (N, D)."""
    x = torch.as_tensor(values, dtype=torch.float32, device=device)
    held_out = torch.as_tensor(fold_of, device=device)
    trains = torch.stack([(held_out != fold).float() for fold in range(int(fold_of.max()) + 1)])
    probes = fit_probes(x, torch.as_tensor(labels, device=device), trains, classes)
    return probes.logits(x)[held_out, torch.arange(len(x), device=device)].cpu().numpy()

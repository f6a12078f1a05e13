"""Linear probes of one layer: what `finetune` starts its heads from."""

from dataclasses import dataclass

import numpy as np
import torch

from mertool.probing.logistic import BatchedLogisticRegression

STRENGTH = 0.1  # scikit-learn's C: the inverse of the L2 penalty


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


def fit_probes(
    x: torch.Tensor, labels: torch.Tensor, trains: torch.Tensor, classes: int, strength: float = STRENGTH
) -> Probes:
    """Fit one probe per row of `trains` (F, N), 1 where an example of x (N, D) is in its training part.

    The penalty is fixed (C = 0.1), so nothing is chosen on other clips.
    """
    solver = BatchedLogisticRegression(x[None], labels.expand(len(trains), -1), trains.to(x.dtype), classes)
    theta, scaled = solver.solve(strength).theta[0], solver.scaled
    return Probes(
        scaled.middle + scaled.spread * scaled.centre[0],
        scaled.rate[0] / scaled.spread,
        theta[..., :-1].mT.contiguous(),
        theta[..., -1],
    )


def cross_validate(
    values: np.ndarray, labels: np.ndarray, fold_of: np.ndarray, classes: int, device: torch.device
) -> np.ndarray:
    """Logits (N, C) of each example by the probe of the fold that held it out, for features (N, D)."""
    x = torch.as_tensor(values, dtype=torch.float32, device=device)
    held_out = torch.as_tensor(fold_of, device=device)
    trains = torch.stack([(held_out != fold).float() for fold in range(int(fold_of.max()) + 1)])
    probes = fit_probes(x, torch.as_tensor(labels, device=device), trains, classes)
    return probes.logits(x)[held_out, torch.arange(len(x), device=device)].cpu().numpy()

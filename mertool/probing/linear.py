"""Linear probes of one layer, with a fixed penalty: `finetune` starts its classification heads from them."""

from dataclasses import dataclass

import numpy as np
import torch

from mertool.probing.logistic import BatchedLogisticRegression

INVERSE_PENALTY = 0.1  # scikit-learn's C


@dataclass(frozen=True, kw_only=True)
class Probes:
    """F linear probes, each on features standardised by its own training clips.

    Attributes:
        mean: Mean of the training clips (F, D).
        scale: Inverse standard deviation of the training clips (F, D).
        weight: (F, D, C).
        bias: (F, C).
    """

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (F, N, C) of features (N, D)."""
        scaled = self.weight * self.scale[:, :, None]
        return x @ scaled - self.mean[:, None] @ scaled + self.bias[:, None]


def fit_probes(x: torch.Tensor, labels: torch.Tensor, train_masks: torch.Tensor, *, n_classes: int) -> Probes:
    """Fit one probe of features (N, D) for each row of `train_masks` (F, N), which is 1 where a clip is in training.

    The penalty is fixed (C = 0.1), so no other clips are needed to choose it.
    """
    solver = BatchedLogisticRegression.from_features(
        x[None], labels.expand(len(train_masks), -1), train_masks.to(x.dtype), n_classes=n_classes
    )
    weights, scaled = solver.solve(INVERSE_PENALTY).weights[0], solver.scaled
    return Probes(
        mean=scaled.median + scaled.mad * scaled.mean[0],
        scale=scaled.inv_std[0] / scaled.mad,
        weight=weights[..., :-1].mT.contiguous(),
        bias=weights[..., -1],
    )


def cross_validate(
    values: np.ndarray, labels: np.ndarray, fold_of: np.ndarray, *, n_classes: int, device: torch.device
) -> np.ndarray:
    """Return the logits (N, C) of each clip by the probe that held out its fold, for features (N, D)."""
    x = torch.as_tensor(values, dtype=torch.float32, device=device)
    folds = torch.as_tensor(fold_of, device=device)
    train_masks = torch.stack([(folds != fold).float() for fold in range(int(fold_of.max()) + 1)])
    probes = fit_probes(x, torch.as_tensor(labels, device=device), train_masks, n_classes=n_classes)
    return probes.logits(x)[folds, torch.arange(len(x), device=device)].cpu().numpy()

"""Centred kernel alignment: the similarity of two representations of the same clips."""

import torch

from mertool.devices import precise_device


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the linear CKA (Kornblith et al., 2019) of two sets of features (N, D) of the same clips.

    It lies between 0 and 1; 1 means equal up to a rotation and a factor. Channels of both are divided by the standard
    deviations of the first, because the few channels of large variance that transformers have would else decide it.
    """
    first, second = (features.to(precise_device(features.device)).double() for features in (first, second))
    scale = first.std(0).clamp_min(1e-6)
    x, y = ((features - features.mean(0)) / scale for features in (first, second))
    cross = torch.linalg.matrix_norm(y.T @ x) ** 2
    return float(cross / (torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)).clamp_min(1e-30))

"""How alike two sets of features of the same clips are."""

import torch


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    """Linear CKA (Kornblith et al., 2019) of two sets of features (N, D) of the same clips: 1 is alike.

    Both are scaled by the deviation of each channel of the first: a few large channels, as transformers have them,
    would else decide it alone.
    """
    scale = first.double().std(0).clamp_min(1e-6)
    a, b = ((features.double() - features.double().mean(0)) / scale for features in (first, second))
    cross = torch.linalg.matrix_norm(b.T @ a) ** 2
    return float(cross / (torch.linalg.matrix_norm(a.T @ a) * torch.linalg.matrix_norm(b.T @ b)).clamp_min(1e-30))

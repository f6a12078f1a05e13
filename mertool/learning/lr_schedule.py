"""Learning-rate schedules, as factors of the peak learning rate, computed from the number of the step alone.

A schedule object of `torch.optim.lr_scheduler` counts its own steps; a training that resumes from a checkpoint would
have to restore that count. A function of the step has no state.
"""

import math
from typing import Any

WARMUP_FRACTION = 0.1  # of all steps
MIN_LR_RATIO = 1e-3  # of the peak: the last steps still change something


def warmup_cosine(step: int, total_steps: int) -> float:
    """Return the factor of the peak learning rate in `step` (from 0): linear warm-up, then cosine decay.

    >>> [round(warmup_cosine(step, 20), 3) for step in (0, 1, 2, 11, 19)]
    [0.5, 1.0, 1.0, 0.5, 0.008]
    """
    warmup_steps = max(1, round(WARMUP_FRACTION * total_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    decay = 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))
    return max(decay, MIN_LR_RATIO)


def warmup(step: int, warmup_steps: int) -> float:
    """Return the factor of the peak learning rate in `step` (from 0): linear warm-up, then constant.

    >>> [warmup(step, 4) for step in (0, 1, 3, 100)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / warmup_steps)


def cosine(step: int, total_steps: int) -> float:
    """Return the factor of the peak learning rate in `step` (from 0): cosine decay to zero, without warm-up.

    >>> [round(cosine(step, 4), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    return 0.5 * (1 + math.cos(math.pi * (step / total_steps)))


def set_learning_rate(optimizer: Any, factor: float) -> None:
    """Set the learning rate of each parameter group to `factor` times the one the group was made with.

    `optimizer` is one of torch, or one that accelerate has prepared.
    """
    for group in optimizer.param_groups:
        # torch's own schedules keep the peak under this name, too.
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

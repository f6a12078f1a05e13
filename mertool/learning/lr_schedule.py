"""The learning rate over a training: up along a line for a tenth of the steps, then down along half a cosine."""

import math
from typing import Any

WARM_UP = 0.1  # of the steps
LEAST = 1e-3  # of the peak


def set_rate(optimizer: Any, step: int, steps: int) -> None:
    """Give each group of parameters its learning rate in `step`, counted from 0, of `steps`, by the group's `peak`."""
    warm = max(1, round(WARM_UP * steps))
    falling = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * ((step + 1) / warm if step < warm else max(falling, LEAST))

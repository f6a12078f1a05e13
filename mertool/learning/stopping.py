"""What ends a training before its last epoch: a loss that is no number."""

import math

from mertool.errors import MertoolError


def check_finite(epoch: int, *losses: float) -> None:
    """Refuse to go on from losses of which one is infinite or not a number; `epoch` counts from 0."""
    if not all(map(math.isfinite, losses)):
        found = " and ".join(f"{loss:g}" for loss in losses)
        raise MertoolError(f"the loss became {found} in epoch {epoch + 1}: give a smaller --learning-rate")

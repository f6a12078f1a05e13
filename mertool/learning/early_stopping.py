"""Early stopping: keep the weights of the best epoch, stop without improvement, abort on a NaN or infinite loss."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from mertool.errors import MertoolError

Tensors = Mapping[str, torch.Tensor]


def check_finite(*losses: float, epoch: int) -> None:
    """Raise MertoolError if a loss of `epoch` (counted from 1; 0 is before training) is NaN or infinite."""
    if all(map(math.isfinite, losses)):
        return
    values = " and ".join(f"{loss:g}" for loss in losses)
    if epoch == 0:
        raise MertoolError(f"the development loss is {values} before training: try --dtype float32")
    raise MertoolError(f"the loss became {values} in epoch {epoch}: give a smaller --learning-rate")


class EarlyStopping:
    """Tracks the epoch with the lowest development loss, keeps its weights, and says when to stop.

    A score of which more is better is given as its negative. Models trained at once take one object each.

    Attributes:
        patience: Epochs without a lower loss after which `should_stop` is true; None means never.
        best_epoch: Counted from 1; 0 while only the initial weights were recorded, or nothing.
        best_loss: Development loss of that epoch; infinite before the first `update`.
        best_weights: Copies of the tensors of that epoch, by name.
        last_epoch: The epoch of the last `update`.
    """

    def __init__(self, patience: int | None = None):
        self.patience = patience
        self.best_epoch = self.last_epoch = 0
        self.best_loss = math.inf
        self.best_weights: dict[str, torch.Tensor] = {}

    def update(self, epoch: int, loss: float, weights: Tensors) -> None:
        """Record the development loss of an epoch, and copy `weights` if it is the lowest; of equal losses the first.

        With epoch 0, called before training, the initial weights are a candidate, too. Raises MertoolError if the
        loss is NaN or infinite.
        """
        check_finite(loss, epoch=epoch)
        self.last_epoch = epoch
        if loss < self.best_loss:
            self.best_epoch, self.best_loss = epoch, loss
            self.best_weights = {name: tensor.detach().clone() for name, tensor in weights.items()}

    @property
    def should_stop(self) -> bool:
        """True if the last `patience` epochs brought no lower loss."""
        return self.patience is not None and self.last_epoch - self.best_epoch >= self.patience

    def to_json(self) -> dict[str, float]:
        """Return all but the weights, for a checkpoint."""
        return {"best_epoch": self.best_epoch, "best_loss": self.best_loss, "last_epoch": self.last_epoch}

    def resume(self, state: dict[str, Any], best_weights: dict[str, torch.Tensor]) -> None:
        """Continue from what `to_json` returned and the best weights of a checkpoint."""
        self.best_epoch, self.best_loss, self.last_epoch = state["best_epoch"], state["best_loss"], state["last_epoch"]
        self.best_weights = best_weights

    @torch.no_grad()
    def restore(self, weights: Tensors) -> None:
        """Copy the best weights into the tensors `weights` of the same names, in place."""
        for name, tensor in weights.items():
            tensor.copy_(self.best_weights[name])

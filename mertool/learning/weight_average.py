"""Exponential moving average of the weights of a training, which scores better and varies less than the last weights.

After Polyak and Juditsky (1992), in the exponential form of Tarvainen and Valpola (2017, "Mean teachers").
"""

from collections.abc import Mapping

import torch

AVERAGED_SHARE = 0.3  # of all steps, about which the average reaches back


class WeightAverage:
    """The running average of tensors; in the first steps, a mean over all of them.

    Attributes:
        values: The averages by name; before the first `update` the initial weights.
        decay: Weight of the average in an update.
        steps: Number of updates.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], *, n_steps: int):
        """Begin an average of a training of `n_steps` steps."""
        self.decay = 1 - 1 / max(1.0, AVERAGED_SHARE * n_steps)
        self.values = {name: tensor.detach().clone() for name, tensor in weights.items()}
        self.steps = 0

    @torch.no_grad()
    def update(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Include the weights after one more step."""
        # The average would otherwise begin with the initial weights.
        decay = min(self.decay, self.steps / (self.steps + 1))
        self.steps += 1
        for name, average in self.values.items():
            average.lerp_(weights[name].detach().to(average), 1 - decay)

    @torch.no_grad()
    def copy_to(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Copy the averages into the tensors `weights` of the same names, in place."""
        for name, tensor in weights.items():
            tensor.copy_(self.values[name])

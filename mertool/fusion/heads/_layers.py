"""Layers of fusion heads, which also compute many heads at once.

A head's parameters and buffers may have one more axis in front, of length M, one entry per ensemble member
(`stack_members`). Features are then (M, B, ...) instead of (B, ...), each member has its own B clips, and a linear
layer is one batched matrix product. A head is therefore written once: it addresses its own axes from the end.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Linear(nn.Module):
    """`nn.Linear` on (..., inputs), with the same initialisation.

    The weight is (inputs, outputs), so that neither the product nor its gradient needs a transposed copy.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        linear = nn.Linear(inputs, outputs)
        self.weight = nn.Parameter(linear.weight.detach().T.contiguous())
        self.bias = nn.Parameter(linear.bias.detach())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.weight.dim() == 2:
            return nn.functional.linear(values, self.weight.mT, self.bias)
        rows = values.flatten(1, -2)
        return torch.baddbmm(self.bias[:, None], rows, self.weight).unflatten(1, values.shape[1:-1])


class Dropout(nn.Module):
    """Dropout with a random generator of its own, and with one rate per member in a stack.

    `nn.Dropout` draws from torch's global generator, which threads that train different stacks would share: results
    would then depend on the timing of the threads.

    Attributes:
        rate: From 0 to below 1; in a stack the largest of the members' rates.
        member_rates: In a stack the rate of each member (M,), on the device of the values.
        generator: On the device of the values; None is torch's global one.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.member_rates: torch.Tensor | None = None
        self.generator: torch.Generator | None = None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return values
        mask = torch.rand(values.shape, generator=self.generator, device=values.device)
        if self.member_rates is None:
            return values * mask.ge_(self.rate).div_(1 - self.rate)
        rates = self.member_rates.view(-1, *[1] * (values.dim() - 1))
        return values * mask.ge_(rates).div_(1 - rates)


def mlp(inputs: int, outputs: int, *, width: int, dropout: float) -> nn.Sequential:
    """Return two linear layers with ReLU and dropout between them."""
    return nn.Sequential(Linear(inputs, width), nn.ReLU(), Dropout(dropout), Linear(width, outputs))


def zero_absent(values: torch.Tensor, present: torch.Tensor, *, training: bool) -> torch.Tensor:
    """Return values (..., D) with zeros where `present` (...) is false, NaN and infinity included.

    In training features are known to be finite, and a product is many times faster on a CPU than `torch.where`.
    """
    mask = present.unsqueeze(-1)
    return values * mask.to(values.dtype) if training else torch.where(mask, values, torch.zeros_like(values))


def broadcast_over_batch(parameter: torch.Tensor, axes: int) -> torch.Tensor:
    """Return a parameter of `axes` axes, or a stack (M, ...) of it, with a batch axis of length 1 before those axes."""
    return parameter.unsqueeze(-1 - axes)


def stack_members(heads: Sequence[AnyModule], generator: torch.Generator | None = None) -> AnyModule:
    """Return the first head with the parameters, buffers and dropout rates of all M heads on a new first axis.

    Unlike `torch.func.stack_module_state` with `vmap` this keeps an ordinary module, whose optimizer and dropout are
    torch's. `generator` is the one that dropout draws from.
    """
    stack = heads[0]
    states = [dict([*head.named_parameters(), *head.named_buffers()]) for head in heads]
    for name, value in states[0].items():
        owner, _, attribute = name.rpartition(".")
        stacked = torch.stack([state[name].detach() for state in states])
        module = stack.get_submodule(owner)
        if isinstance(value, nn.Parameter):
            module.register_parameter(attribute, nn.Parameter(stacked))
        else:
            module.register_buffer(attribute, stacked)
    dropouts = [[module for module in head.modules() if isinstance(module, Dropout)] for head in heads]
    device = next(stack.parameters()).device
    for layers in zip(*dropouts, strict=True):
        rates = [layer.rate for layer in layers]
        layers[0].rate, layers[0].member_rates = max(rates), torch.tensor(rates, device=device)
        layers[0].generator = generator
    return stack

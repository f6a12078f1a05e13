"""Layers that one head, or many heads at once, are made of.

A head's parameters and buffers may have one more axis in front, that of M members (`stack`). Features are then
(M, B, ...) instead of (B, ...), every member works on its own rows, and a layer is one batched product. So a head is
written once, for the axes it names, and leaves those before them alone.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Linear(nn.Module):
    """`nn.Linear` on (..., in), initialised alike; its weight is (in, out): the gradient needs no transposing."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        plain = nn.Linear(inputs, outputs)
        self.weight = nn.Parameter(plain.weight.detach().T.contiguous())
        self.bias = nn.Parameter(plain.bias.detach())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.weight.dim() == 2:
            return nn.functional.linear(values, self.weight.mT, self.bias)
        rows = values.flatten(1, -2)
        return torch.baddbmm(self.bias[:, None], rows, self.weight).unflatten(1, values.shape[1:-1])


class Dropout(nn.Module):
    """Dropout; where `factors` is set (shape -> zeros, or one over the share kept), it is asked for them instead."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.factors: Callable[[torch.Size], torch.Tensor] | None = None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.training and self.factors is not None:
            return values * self.factors(values.shape)
        return nn.functional.dropout(values, self.rate, self.training)


def mlp(inputs: int, width: int, outputs: int, dropout: float) -> nn.Sequential:
    """Two linear layers with ReLU and dropout between them."""
    return nn.Sequential(Linear(inputs, width), nn.ReLU(), Dropout(dropout), Linear(width, outputs))


def blank(values: torch.Tensor, present: torch.Tensor, training: bool) -> torch.Tensor:
    """Values (..., D), with zeros where `present` (...,) is false.

    In training features are finite and a product will do, many times faster on a CPU; else even NaN becomes zero.
    """
    there = present.unsqueeze(-1)
    return values * there.to(values.dtype) if training else torch.where(there, values, torch.zeros_like(values))


def by_clip(parameter: torch.Tensor, axes: int) -> torch.Tensor:
    """A parameter of `axes` axes, with one for clips before them, after the members' if there is one."""
    return parameter.unsqueeze(-1 - axes)


def stack(heads: Sequence[AnyModule]) -> AnyModule:
    """The first head, its parameters and buffers replaced by those of all heads on a new first axis."""
    states = [dict([*head.named_parameters(), *head.named_buffers()]) for head in heads]
    first = heads[0]
    for name, value in states[0].items():
        owner, _, own = name.rpartition(".")
        together = torch.stack([state[name].detach() for state in states])
        module = first.get_submodule(owner)
        if isinstance(value, nn.Parameter):
            module.register_parameter(own, nn.Parameter(together))
        else:
            module.register_buffer(own, together)
    return first

"""Reading the hidden states of any transformer by hooks on its blocks.

transformers' own `hidden_states` differ between versions (the last entry is taken before or after the final
LayerNorm); the output of block n does not.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

# Attention that reads the weights of its projections instead of calling them: replacing a projection has no effect.
FUNCTIONAL_ATTENTION_CLASSES = ("WavLMAttention",)


def find_blocks(model: nn.Module, count: int) -> nn.ModuleList:
    """Return the list of the `count` transformer blocks: modules of one class with attention in them.

    Raises ValueError if there is none.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            classes = {type(block) for block in module}
            names = {name.split(".")[-1].lower() for name, _ in module[0].named_modules()}
            if len(classes) == 1 and any("attention" in name or "attn" in name for name in names):
                return module
    raise ValueError(f"{type(model).__name__} has no list of {count} transformer blocks")


@contextmanager
def capture_hidden_states(blocks: nn.ModuleList, layers: Iterable[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Yield a dictionary that each forward pass fills: the output of block n under n, the input of block 1 under 0."""
    states: dict[int, torch.Tensor] = {}
    chosen = set(layers)

    def keep_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[0] = args[0] if args else kwargs["hidden_states"]

    def keep_output(layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            states[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True)] if 0 in chosen else []
    handles += [blocks[layer - 1].register_forward_hook(keep_output(layer)) for layer in chosen if layer > 0]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def stack_layers(states: Mapping[int, torch.Tensor], layers: Iterable[int]) -> torch.Tensor:
    """Stack captured hidden states (B, T, D) to (L, B, T, D), float32, in the order of `layers`."""
    return torch.stack([states[layer].float() for layer in layers])


def truncate_after(blocks: nn.ModuleList, layer: int) -> None:
    """Remove the blocks above `layer`, on which no layer up to it depends."""
    del blocks[max(layer, 1) :]


def remove_weight_norm(model: nn.Module) -> None:
    """Compute parametrized weights (weight norm) once instead of in every forward pass."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(cast(nn.ModuleDict, module.parametrizations)):
                parametrize.remove_parametrizations(module, name)

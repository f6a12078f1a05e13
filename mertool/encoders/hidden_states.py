"""Finding the transformer blocks of any model and reading their outputs by our own hooks.

transformers' `hidden_states` change between versions (the last entry is taken before or after the final
LayerNorm); the output of block n does not.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

# These attentions read the weights of their projections instead of calling the modules, so no module may take a
# projection's place: its own forward would never run.
FUNCTIONAL_ATTENTION_CLASSES = ("WavLMAttention",)


def find_blocks(model: nn.Module, count: int) -> nn.ModuleList:
    """The list of the `count` transformer blocks: of one class, with attention inside."""
    for _, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            kinds = {type(block) for block in module}
            inside = {name.split(".")[-1].lower() for name, _ in module[0].named_modules()}
            if len(kinds) == 1 and any("attention" in name or "attn" in name for name in inside):
                return module
    raise ValueError(f"{type(model).__name__} has no list of {count} transformer blocks")


@contextmanager
def capture_hidden_states(blocks: nn.ModuleList, keep: Iterable[int]) -> Iterator[dict[int, torch.Tensor]]:
    """While open, each forward pass puts the output of block n under key n; 0 is the input of block 1."""
    found: dict[int, torch.Tensor] = {}
    wanted = set(keep)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found[0] = args[0] if args else kwargs["hidden_states"]

    def after(number: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[number] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)] if 0 in wanted else []
    handles += [blocks[n - 1].register_forward_hook(after(n)) for n in wanted if n > 0]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def truncate_after(blocks: nn.ModuleList, layer: int) -> None:
    """Remove the blocks above `layer`: nothing that is kept depends on them."""
    del blocks[max(layer, 1) :]


def remove_weight_norm(model: nn.Module) -> None:
    """Compute parametrized weights (weight norm) once instead of in every forward pass."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(cast(nn.ModuleDict, module.parametrizations)):
                parametrize.remove_parametrizations(module, name)


def stack(found: dict[int, torch.Tensor], keep: Iterable[int]) -> torch.Tensor:
    """Tapped layers as one tensor (L, B, T, D), float32."""
    return torch.stack([found[number].float() for number in keep])

"""PEFT methods, one file each: `NAME.config(targets, size)` returns a PEFT configuration.

All are saved in PEFT's own format (adapter_config.json, adapter_model.safetensors). `TARGETS` of a method names
what it is put on by endings of module names inside a block ("" is the block itself), `SIZE` is its default size:
a width, a rank, a number of vectors, or None where the model alone says how much is trained; `RATE` is its usual
peak learning rate.

Beside the two files of PEFT lies shift.safetensors: what the adapter adds to the features of all clips alike, the
mean over clips it learned from. Adapters of different folds differ in it, and it tells them apart better than any
emotion; so it is taken off whatever they make (see engine/adapted.py).
"""

import re
from collections.abc import Collection
from copy import deepcopy
from decimal import Decimal
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from mertool import registry
from mertool.errors import MertoolError
from mertool.files import write_atomic
from mertool.runs import load_tensors

PACKAGE = "adapters.methods"
FINAL = "final"  # the adapter trained on all folds
SHIFT = "shift"
# An adapter on a projection inside gets no gradient: this attention reads the weights instead of calling the module.
FUNCTIONAL_ATTENTION_CLASSES = ("WavLMAttention",)
EVERY_BLOCK = "feed_forward"  # what blocks of the wav2vec 2.0 kind have; no other kind is adapted
UNITS = {"": 1, "k": 1_000, "m": 1_000_000}


def add_adapter(model: nn.Module, blocks: nn.ModuleList, layers: Collection[int], method: str, size: int | None) -> Any:
    """Put fresh adapters of `method` on blocks `layers` (counted from 1); only they are trainable.

    `size` is the bottleneck width, the rank or the number of prompt vectors; methods without a size ignore it.
    Returns a PeftModel around `model`.
    """
    import peft

    module = registry.load(PACKAGE, "PEFT method", method)
    names = target_names(model, blocks, layers, module.TARGETS)
    wrapped = peft.get_peft_model(model, module.config(names, size), adapter_name=FINAL)
    config = wrapped.peft_config[FINAL]
    for field, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, field, sorted(value))  # a set is written in another order each time
    # PEFT shortens many names to endings that tell them from the modules of this model; where blocks were removed
    # for training, the same endings would match those blocks in the whole model.
    config.target_modules = names
    return wrapped


def load_adapters(model: nn.Module, folder: Path) -> Any:
    """Put all adapters of a finetune run on `model`: `final`, and one per fold. `final` is active."""
    import peft
    from safetensors import SafetensorError

    for method in registry.choices(PACKAGE):
        registry.load(PACKAGE, "PEFT method", method)  # makes our own methods known to PEFT
    folders = {path.parent.name: path.parent for path in sorted(folder.glob("*/adapter_config.json"))}
    if FINAL not in folders:
        raise MertoolError(f"{folder} holds no adapter: it is not what `mertool finetune` writes")
    try:
        wrapped = peft.PeftModel.from_pretrained(model, str(folders[FINAL]), adapter_name=FINAL)
        for name in sorted(folders.keys() - {FINAL}):
            wrapped.load_adapter(str(folders[name]), adapter_name=name)
        incomplete = [name for name, path in folders.items() if not _is_complete(wrapped, path, name)]
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise MertoolError(f"the adapters in {folder} are damaged ({type(error).__name__}): make them again") from error
    if incomplete:
        raise MertoolError(
            f"the adapters {', '.join(incomplete)} in {folder} do not fit this encoder: give the one they were made for"
        )
    wrapped.set_adapter(FINAL)
    return wrapped.eval()


def _is_complete(model: Any, folder: Path, name: str) -> bool:
    """Whether the file has exactly what the adapter needs: PEFT itself leaves the rest as it was, with a warning."""
    import peft
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        saved = set(file.keys())
    return saved == set(peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))


def save_adapter(model: Any, folder: Path, name: str) -> None:
    """Save the adapter as `folder/name`, in PEFT's format. Nothing of the frozen model is written."""
    with TemporaryDirectory(dir=folder.parent) as draft:
        # PEFT names the folder after the adapter, and adds a model card with blanks to fill in.
        model.save_pretrained(draft, selected_adapters=[FINAL])
        folder.mkdir(exist_ok=True)
        (Path(draft) / FINAL).rename(folder / name)


def save_shift(folder: Path, shift: torch.Tensor) -> None:
    """Save the mean shift (layers + 1, D) of the adapter in `folder`, layer 0 being the embedding."""
    from safetensors.torch import save

    write_atomic(folder / f"{SHIFT}.safetensors", save({SHIFT: shift.float().cpu().contiguous()}))


def load_shifts(folder: Path) -> dict[str, torch.Tensor]:
    """The mean shift (layers + 1, D) of every adapter in `folder`, by name."""
    adapters = [path.parent for path in sorted(folder.glob("*/adapter_config.json"))]
    try:
        return {adapter.name: load_tensors(adapter / f"{SHIFT}.safetensors")[SHIFT] for adapter in adapters}
    except KeyError as error:
        raise MertoolError(f"an adapter in {folder} has no mean shift: make the adapters again") from error


def target_names(
    model: nn.Module, blocks: nn.ModuleList, layers: Collection[int], endings: tuple[str, ...]
) -> list[str]:
    """Full names of the modules in the chosen blocks whose own name ends with one of `endings`; "" is the block."""
    outside = [layer for layer in layers if not 1 <= layer <= len(blocks)]
    if outside or not layers:
        raise MertoolError(f"layers {outside or '(none)'} cannot be adapted: blocks are 1 to {len(blocks)}")
    if not all(hasattr(blocks[layer - 1], EVERY_BLOCK) for layer in layers):
        raise MertoolError(f"the blocks of {type(model).__name__} have no module named {EVERY_BLOCK}")
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    return [
        f"{prefix}.{layer - 1}.{name}" if name else f"{prefix}.{layer - 1}"
        for layer in layers
        for name in _matches(blocks[layer - 1], endings)
    ]


def _matches(block: nn.Module, endings: tuple[str, ...]) -> list[str]:
    if "" in endings:
        return [""]
    unheard = tuple(
        f"{n}." for n, module in block.named_modules() if type(module).__name__ in FUNCTIONAL_ATTENTION_CLASSES
    )
    return [n for n, _ in block.named_modules() if n.endswith(endings) and not (unheard and n.startswith(unheard))]


def count_trainable(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def size_for_budget(
    model: nn.Module, blocks: nn.ModuleList, layers: Collection[int], method: str, budget: int
) -> int | None:
    """The largest size of `method` on blocks `layers` that trains at most `budget` parameters.

    None for a method without a size. The count is affine in the size. Raises MertoolError if the smallest is too large.
    """
    module = registry.load(PACKAGE, "PEFT method", method)
    whole = sum(parameter.numel() for parameter in model.parameters())
    if budget > whole:
        raise MertoolError(f"--budget {budget:,} is more than the {whole:,} parameters of the encoder: give less")
    smallest = _count(model, blocks, layers, method, module.SIZE and 1)
    if smallest > budget:
        least = f"at least {smallest:,}" if module.SIZE else f"{smallest:,}"
        raise MertoolError(
            f"{method} on these {len(layers)} layers trains {least} parameters, more than the budget of {budget:,}: "
            "give a larger --budget, fewer --layers or another --method"
        )
    if not module.SIZE:
        return None
    return 1 + (budget - smallest) // (_count(model, blocks, layers, method, 2) - smallest)


def _count(model: nn.Module, blocks: nn.ModuleList, layers: Collection[int], method: str, size: int | None) -> int:
    """Parameters that would be trained, measured on a copy of the model without values."""
    tensors = chain(model.parameters(), model.buffers())
    memo: dict[int, Any] = {id(tensor): _without_values(tensor) for tensor in tensors}
    empty = deepcopy(model, memo)
    return count_trainable(add_adapter(empty, memo[id(blocks)], layers, method, size))


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def parse_budget(text: str) -> int:
    """A number of parameters: `800k`, `1.6M` or `1600000`. Raises MertoolError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([km]?)", text.strip().lower())
    count = Decimal(found[1]) * UNITS[found[2]] if found else Decimal(0)
    if count < 1 or count != int(count):
        raise MertoolError(f"budget '{text}': give a number of parameters such as 800k, 1.6M or 1600000")
    return int(count)

"""PEFT methods, one file each: `NAME.config(targets, size)` returns a PEFT configuration.

A method also defines `TARGETS`, the names of modules inside a block that it is put on ("" is the block itself, beside
other names the block where it has no such modules; see _modules.py);
`SIZE`, its default width, rank or number of vectors, None where the model determines how much is trained; and `RATE`,
its usual peak learning rate. Adapters are saved in PEFT's own format (adapter_config.json, adapter_model.safetensors).

Beside these two files is mean_offset.safetensors: the mean change of each layer's features by the adapter, over the
clips it was trained on. It differs between folds, and more than emotions do, which would make features of different
folds incomparable. So it is subtracted from the features (see extraction/multi_adapter.py).
"""

from collections.abc import Collection
from copy import deepcopy
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from mertool import registry
from mertool.adapters.methods._modules import BLOCK, FEED_FORWARD, SECOND_LINEAR_ALONE
from mertool.adapters.methods._saved import SavedAdapter
from mertool.encoders.hidden_states import FUNCTIONAL_ATTENTION_CLASSES
from mertool.errors import MertoolError
from mertool.files import write_atomic
from mertool.runs import load_tensors

PACKAGE = "adapters.methods"
FINAL = "final"  # the adapter trained on all folds
MEAN_OFFSET = "mean_offset"


def add_adapter(
    model: nn.Module, blocks: nn.ModuleList, layers: Collection[int], *, method: str, size: int | None
) -> Any:
    """Put a new adapter of `method` on blocks `layers` (counted from 1) of `model`, and freeze all else.

    `size` is the bottleneck width, the rank or the number of vectors; methods without a size ignore it. Returns a
    PeftModel around `model`.
    """
    import peft

    module = registry.load(PACKAGE, "PEFT method", method)
    names = target_names(model, blocks, layers, targets=module.TARGETS)
    peft_model = peft.get_peft_model(model, module.config(names, size), adapter_name=FINAL)
    config = peft_model.peft_config[FINAL]
    for field, value in vars(config).items():
        if isinstance(value, set):
            # A set is written in another order each time.
            setattr(config, field, sorted(value))
    # PEFT shortens many names to endings that are unique in this model. Where blocks were removed for training, the
    # same endings would match those blocks in the whole model.
    config.target_modules = sorted(names)
    return peft_model


def load_adapters(model: nn.Module, folder: Path) -> Any:
    """Put all adapters of a finetune run on `model`: `final`, which is active, and one per fold.

    Returns a PeftModel. Raises MertoolError for damaged adapters and those of another encoder.
    """
    import peft

    adapters = {path.name: SavedAdapter.read(path) for path in _adapter_folders(folder)}
    if FINAL not in adapters:
        raise MertoolError(f"{folder} holds no adapter: it is not what `mertool finetune` writes")
    modules = dict(model.named_modules())
    unfit = [name for name, adapter in adapters.items() if not modules.keys() >= set(adapter.config.target_modules)]
    try:
        if not unfit:
            peft_model = peft.get_peft_model(model, adapters[FINAL].config, adapter_name=FINAL)
            for name in sorted(adapters.keys() - {FINAL}):
                peft_model.add_adapter(name, adapters[name].config)
            unfit = [name for name, adapter in adapters.items() if not adapter.load_into(peft_model, name)]
    except (ValueError, KeyError, TypeError, RuntimeError) as error:  # of targets that a method cannot be put on
        raise MertoolError(f"the adapters in {folder} are damaged ({type(error).__name__}): make them again") from error
    if unfit:
        raise MertoolError(
            f"the adapters {', '.join(unfit)} in {folder} do not fit this encoder: give the one they were made for"
        )
    peft_model.set_adapter(FINAL, inference_mode=True)
    return peft_model.eval()


def _adapter_folders(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob("*/adapter_config.json"))]


def save_adapter(peft_model: Any, folder: Path, name: str) -> None:
    """Save the adapter as `folder/name`, in PEFT's format, without the frozen model."""
    with TemporaryDirectory(dir=folder.parent) as draft:
        # PEFT names the folder after the adapter, and adds an empty model card beside it.
        peft_model.save_pretrained(draft, selected_adapters=[FINAL])
        folder.mkdir(exist_ok=True)
        (Path(draft) / FINAL).rename(folder / name)


def save_mean_offset(folder: Path, offset: torch.Tensor) -> None:
    """Save the mean offset (layers + 1, D) of the adapter in `folder`; layer 0 is the embedding."""
    from safetensors.torch import save

    content = save({MEAN_OFFSET: offset.float().cpu().contiguous()})
    write_atomic(folder / f"{MEAN_OFFSET}.safetensors", content)


def load_mean_offsets(folder: Path, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Return the mean offset of every adapter in `folder`, by the adapter's name.

    `shape` is (layers + 1, D) of the encoder. Raises MertoolError for a missing or damaged file.
    """
    offsets = {}
    for adapter in _adapter_folders(folder):
        file = adapter / f"{MEAN_OFFSET}.safetensors"
        if not file.exists():
            raise MertoolError(
                f"{adapter} has no {file.name}, it was made by an older version: make the adapters again with "
                "`mertool finetune`"
            )
        offset = load_tensors(file).get(MEAN_OFFSET)
        if offset is None or offset.shape != shape or offset.dtype != torch.float32 or not offset.isfinite().all():
            raise MertoolError(
                f"{file} is damaged: it must hold finite values of shape {shape}. Make the adapters again"
            )
        offsets[adapter.name] = offset
    return offsets


def target_names(
    model: nn.Module, blocks: nn.ModuleList, layers: Collection[int], *, targets: tuple[str, ...]
) -> list[str]:
    """Return the full names of the modules `targets` of the chosen blocks."""
    outside = [layer for layer in layers if not 1 <= layer <= len(blocks)]
    if outside or not layers:
        raise MertoolError(f"layers {outside or '(none)'} cannot be adapted: blocks are 1 to {len(blocks)}")
    known = (FEED_FORWARD, SECOND_LINEAR_ALONE)
    if not all(any(hasattr(blocks[layer - 1], name) for name in known) for layer in layers):
        raise MertoolError(f"the blocks of {type(model).__name__} have no module named {' or '.join(known)}")
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    names = [
        f"{prefix}.{layer - 1}.{name}" if name else f"{prefix}.{layer - 1}"
        for layer in layers
        for name in _matching_modules(blocks[layer - 1], targets)
    ]
    if not names:
        raise MertoolError(
            f"the blocks of {type(model).__name__} have no module {' or '.join(targets)}: give another --method"
        )
    return names


def _matching_modules(block: nn.Module, targets: tuple[str, ...]) -> list[str]:
    # An adapter inside such an attention gets no gradient: the attention reads weights and calls no module.
    functional = tuple(
        f"{name}." for name, module in block.named_modules() if type(module).__name__ in FUNCTIONAL_ATTENTION_CLASSES
    )
    names = [name for name, _ in block.named_modules() if name and name in targets]
    if not names and BLOCK in targets:
        return [BLOCK]
    return [name for name in names if not (functional and name.startswith(functional))]


def count_trainable(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def size_for_budget(
    model: nn.Module, blocks: nn.ModuleList, layers: Collection[int], *, method: str, budget: int
) -> int | None:
    """Return the largest size of `method` on blocks `layers` that trains at most `budget` parameters.

    None for a method without a size. Raises MertoolError if the smallest size is too large.
    """
    module = registry.load(PACKAGE, "PEFT method", method)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    if budget > n_parameters:
        raise MertoolError(
            f"--budget {budget:,} is more than the {n_parameters:,} parameters of the encoder: give less"
        )
    smallest = _count_for_size(model, blocks, layers, method=method, size=module.SIZE and 1)
    if smallest > budget:
        least = f"at least {smallest:,}" if module.SIZE else f"{smallest:,}"
        raise MertoolError(
            f"{method} on these {len(layers)} layers trains {least} parameters, more than the budget of {budget:,}: "
            "give a larger --budget, fewer --layers or another --method"
        )
    if not module.SIZE:
        return None
    # The count is affine in the size, so two counts determine it.
    per_size = _count_for_size(model, blocks, layers, method=method, size=2) - smallest
    return 1 + (budget - smallest) // per_size


def _count_for_size(
    model: nn.Module, blocks: nn.ModuleList, layers: Collection[int], *, method: str, size: int | None
) -> int:
    """Return the number of parameters that would be trained, counted on a copy of the model without values."""
    tensors = chain(model.parameters(), model.buffers())
    memo: dict[int, Any] = {id(tensor): _without_values(tensor) for tensor in tensors}
    empty_model = deepcopy(model, memo)
    return count_trainable(add_adapter(empty_model, memo[id(blocks)], layers, method=method, size=size))


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty

"""PEFT methods, one file each: `NAME.config(targets, size)` returns a PEFT configuration.

All are saved in PEFT's own format (adapter_config.json, adapter_model.safetensors). `targets` names the
blocks to adapt, counted from 1, by the modules inside them.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from mertool import registry
from mertool.errors import MertoolError

PACKAGE = "peft_methods"
FINAL = "final"  # the adapter trained on all folds


def add_adapter(model: nn.Module, blocks: nn.ModuleList, layers: tuple[int, ...], method: str, size: int) -> Any:
    """Put fresh adapters of `method` on blocks `layers` (counted from 1); only they are trainable.

    `size` is the bottleneck width or the rank. Returns a PeftModel around `model`.
    """
    import peft

    module = registry.load(PACKAGE, "PEFT method", method)
    names = target_names(model, blocks, layers, module.TARGETS)
    return peft.get_peft_model(model, module.config(names, size), adapter_name=FINAL)


def load_adapters(model: nn.Module, folder: Path) -> Any:
    """Put all adapters of a finetune run on `model`: `final`, and one per fold. `final` is active."""
    import peft
    from safetensors import SafetensorError

    registry.load(PACKAGE, "PEFT method", "bottleneck")  # registers our own method with PEFT
    folders = {path.parent.name: path.parent for path in sorted(folder.glob("*/adapter_config.json"))}
    if FINAL not in folders:
        raise MertoolError(f"{folder} holds no adapter: it is not what `mertool finetune` writes")
    try:
        wrapped = peft.PeftModel.from_pretrained(model, str(folders.pop(FINAL)), adapter_name=FINAL)
        for name, path in folders.items():
            wrapped.load_adapter(str(path), adapter_name=name)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise MertoolError(f"the adapters in {folder} are damaged ({type(error).__name__}): make them again") from error
    wrapped.set_adapter(FINAL)
    return wrapped.eval()


def save_adapter(model: Any, folder: Path, name: str) -> None:
    """Save the adapter as `folder/name`, in PEFT's format. Nothing of the frozen model is written."""
    with TemporaryDirectory(dir=folder.parent) as draft:
        # PEFT names the folder after the adapter, and adds a model card with blanks to fill in.
        model.save_pretrained(draft, selected_adapters=[FINAL])
        folder.mkdir(exist_ok=True)
        (Path(draft) / FINAL).rename(folder / name)


def target_names(
    model: nn.Module, blocks: nn.ModuleList, layers: tuple[int, ...], endings: tuple[str, ...]
) -> list[str]:
    """Full names of the modules in the chosen blocks whose own name ends with one of `endings`."""
    outside = [layer for layer in layers if not 1 <= layer <= len(blocks)]
    if outside or not layers:
        raise MertoolError(f"layers {outside or '(none)'} cannot be adapted: blocks are 1 to {len(blocks)}")
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    names = [
        f"{prefix}.{layer - 1}.{name}"
        for layer in layers
        for name, _ in blocks[layer - 1].named_modules()
        if name.endswith(endings)
    ]
    if not names:
        raise MertoolError(f"the blocks of {type(model).__name__} have no module named {' or '.join(endings)}")
    return names

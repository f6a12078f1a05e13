"""Reading saved adapters, which may come from strangers.

PEFT would do what adapter_config.json says: import modules, fetch models, load pickles, compute initial values. So the
file only chooses a method of ours, its targets and its size; the configuration is made anew from these, and all other
settings must be those of the method.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mertool import registry
from mertool.errors import MertoolError
from mertool.runs import load_tensors
from mertool.untrusted import read_json_object

PACKAGE = "adapters.methods"
REMEDY = "make the adapters again with `mertool finetune`"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Settings that say where an adapter comes from, and not what it computes.
PROVENANCE = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter as it was saved.

    folder: where it is saved.
    config: its PEFT configuration, made anew by its method.
    tensors: its tensors by PEFT's names.
    """

    folder: Path
    config: Any
    tensors: dict[str, torch.Tensor]

    @classmethod
    def read(cls, folder: Path) -> "SavedAdapter":
        """Read the adapter in `folder`; raises MertoolError unless a method of mertool could have written it."""
        tensors = load_tensors(folder / WEIGHTS)
        for name, tensor in tensors.items():
            if tensor.dtype not in DTYPES or not tensor.isfinite().all():
                raise MertoolError(f"{folder / WEIGHTS} is damaged: {name} has values that are no finite numbers")
        saved = read_json_object(folder / CONFIG, REMEDY)
        targets = saved.get("target_modules")
        if not isinstance(targets, list) or not targets or not all(isinstance(name, str) and name for name in targets):
            raise MertoolError(f"{folder / CONFIG} is damaged: target_modules must be a list of names")
        return cls(folder, _make_config(folder / CONFIG, saved, targets, tensors=tensors), tensors)

    def load_into(self, peft_model: Any, name: str) -> bool:
        """Copy the tensors into the adapter `name`; return False if names or shapes are not those of the adapter."""
        import peft

        expected = peft.get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
        if {key: tensor.shape for key, tensor in expected.items()} != {
            key: tensor.shape for key, tensor in self.tensors.items()
        }:
            return False
        peft.set_peft_model_state_dict(peft_model, self.tensors, adapter_name=name)
        return True


def _make_config(file: Path, saved: dict[str, Any], targets: list[str], *, tensors: dict[str, torch.Tensor]) -> Any:
    """Return the configuration of the method whose settings are those of `saved`; raises MertoolError without one."""
    for method in registry.choices(PACKAGE):
        # Importing a method of ours also makes it known to PEFT.
        module = registry.load(PACKAGE, "PEFT method", method)
        size = _size(module, saved, targets)
        if module.SIZE is not None and not any(size in tensor.shape for tensor in tensors.values()):
            continue  # also a size for which there would be no memory
        config = module.config(targets, size)
        settings = _as_json(config)
        if saved.get("peft_type") == settings["peft_type"] and all(
            saved[name] == value for name, value in settings.items() if name in saved
        ):
            config.inference_mode = True
            return config
    raise MertoolError(f"{file} is of no method of mertool: valid: {', '.join(registry.choices(PACKAGE))}")


def _size(module: Any, saved: dict[str, Any], targets: list[str]) -> int | None:
    """Return the size in a saved configuration: the setting that equals the size whatever it is, as LoRA's `r`."""
    if module.SIZE is None:
        return None
    smallest, next_size = (_as_json(module.config(targets, size)) for size in (1, 2))
    sizes = [saved.get(name) for name in smallest if (smallest[name], next_size[name]) == (1, 2)]
    return sizes[0] if sizes and type(sizes[0]) is int else None


def _as_json(config: Any) -> dict[str, Any]:
    """Return the settings of a PEFT configuration that decide what it computes, as JSON holds them."""
    settings = {name: value for name, value in config.to_dict().items() if name not in (*PROVENANCE, "target_modules")}
    return json.loads(
        json.dumps(settings, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )

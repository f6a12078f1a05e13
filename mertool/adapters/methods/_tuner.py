"""What our own methods share: PEFT's tuner, its wrapper around a module of the model, the registration.

A method is a Part: an `nn.Module` built as `Part(base, size)` for the module it is put on, and called in that
module's place as `part(base, *args, **kwargs)`. Its parameters are what is trained and saved. PEFT knows the
method as MERTOOL_NAME once the method's file is imported; the name is ours alone, so that no coming method of
PEFT's can take its place.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from torch import nn

# Endings of parameters whose gradient is zero: the bias of the keys adds one number to all scores of a query,
# and softmax takes it away again.
UNTRAINABLE = ("k_proj.bias",)


@dataclass
class PartConfig(PeftConfig):
    """What PEFT needs to rebuild the parts: where they are put, and their size where the method has one."""

    target_modules: Any = None
    size: int | None = None
    exclude_modules: Any = None
    modules_to_save: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(self.peft_type)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


class PartLayer(nn.Module, BaseTunerLayer):
    """A module of the model and, by adapter, the part that stands in for it."""

    other_param_names = ()

    def __init__(self, base_layer: nn.Module, prefix: str):
        super().__init__()
        self.base_layer = base_layer
        self.adapter_layer_names = (f"{prefix}parts",)
        self.add_module(f"{prefix}parts", nn.ModuleDict())
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.merged_adapters: list[str] = []
        self.training = base_layer.training

    @property
    def parts(self) -> Any:
        """Adapter name to part."""
        return getattr(self, self.adapter_layer_names[0])

    def add(self, adapter_name: str, part: nn.Module) -> None:
        """Add the part of one adapter, on the device of the module."""
        self.parts[adapter_name] = part.to(next(self.get_base_layer().parameters()).device).train(self.training)
        self.set_adapter(self.active_adapters)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter the active one."""
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise ValueError(f"one adapter can be active at a time, not {', '.join(adapter_names)}")
        super().set_adapter(adapter_names, inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        active = [self.parts[name] for name in self.active_adapters if name in self.parts]
        if self.disable_adapters or not active:
            return self.base_layer(*args, **kwargs)
        return active[0](self.base_layer, *args, **kwargs)


class ModuleTuner(BaseTuner):
    """PEFT's tuner of one of our methods; a method sets `prefix` (`mertool_NAME_`) and `part`."""

    part: Any
    tuner_layer_cls = PartLayer
    target_module_mapping: dict[str, Any] = {}  # noqa: RUF012  PEFT declares it so

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if not isinstance(target, PartLayer):
            target = PartLayer(target, self.prefix)
            target.set_adapter(self.active_adapters)
            setattr(parent, target_name, target)
        target.add(adapter_name, self.part(target.get_base_layer(), peft_config.size))

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT's own looks for the adapter's name right before the last word, and a part may be a whole block.
        return key.replace(f".{cls.prefix}parts.{adapter_name}.", f".{cls.prefix}parts.", 1)


def part_config(tuner: type[ModuleTuner], targets: list[str], size: int | None = None) -> PartConfig:
    """PEFT configuration of a method of ours on the modules `targets`."""
    return PartConfig(peft_type=_type_name(tuner), target_modules=set(targets), size=size)


def register(tuner: type[ModuleTuner]) -> None:
    """Make a method known to PEFT. PEFT offers no call that adds a name to its enumeration."""
    name = _type_name(tuner)
    if name in PeftType.__members__:
        return
    member: Any = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    PeftType._member_map_[name] = member
    PeftType._member_names_.append(name)
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    register_peft_method(name=name.lower(), config_cls=PartConfig, model_cls=tuner)


def _type_name(tuner: type[ModuleTuner]) -> str:
    return tuner.prefix.removesuffix("_").upper()


def width_of(module: nn.Module) -> int:
    """Channels of the output of a feed-forward module or a block: those of its last linear layer."""
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(module).__name__} holds no linear layer to take the width from")
    return linear[-1].out_features


def hidden_of(output: Any) -> torch.Tensor:
    """Hidden states (B, T, D) in what a block returns: a tensor, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    """What a block returned, with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

"""Base of our own PEFT methods: a tuner for PEFT, the layer it puts around a module, and the registration.

A method defines a replacement, an `nn.Module` made as `Replacement(base, size)` for a module of the model and called in
its place as `replacement(base, *args, **kwargs)`. The parameters of the replacement are trained and saved. PEFT knows
the method as MERTOOL_NAME once its file is imported; the prefix keeps it apart from future methods of PEFT.
"""

from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

# Endings of parameters whose gradient is zero: the bias of the keys adds the same number to all scores of a query, and
# softmax cancels it.
UNTRAINABLE = ("k_proj.bias",)


@dataclass
class ReplacementConfig(peft.PeftConfig):
    """PEFT's configuration of one of our methods.

    Attributes:
        target_modules: Names of the modules that are replaced.
        size: Width or number of vectors; None for a method without a size.
        exclude_modules: Unused, but read by PEFT.
        modules_to_save: Unused, but read by PEFT.
    """

    target_modules: Any = None
    size: int | None = None
    exclude_modules: Any = None
    modules_to_save: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


class ReplacementLayer(nn.Module, BaseTunerLayer):
    """A module of the model with its replacements, one per adapter; the active one is called in its place."""

    other_param_names = ()

    def __init__(self, base_layer: nn.Module, prefix: str):
        super().__init__()
        self.base_layer = base_layer
        # The name is that of the parameters in adapter_model.safetensors.
        self.adapter_layer_names = (f"{prefix}parts",)
        self.add_module(f"{prefix}parts", nn.ModuleDict())
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.merged_adapters: list[str] = []
        self.training = base_layer.training

    @property
    def replacements(self) -> Any:
        """The replacement of each adapter, by the adapter's name."""
        return getattr(self, self.adapter_layer_names[0])

    def add(self, adapter_name: str, replacement: nn.Module) -> None:
        """Add the replacement of one adapter, on the device of the module."""
        device = next(self.get_base_layer().parameters()).device
        self.replacements[adapter_name] = replacement.to(device).train(self.training)
        self.set_adapter(self.active_adapters)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter the active one. Raises ValueError for several."""
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise ValueError(f"one adapter can be active at a time, not {', '.join(adapter_names)}")
        super().set_adapter(adapter_names, inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        active = [self.replacements[name] for name in self.active_adapters if name in self.replacements]
        if self.disable_adapters or not active:
            return self.base_layer(*args, **kwargs)
        return active[0](self.base_layer, *args, **kwargs)


class ModuleTuner(BaseTuner):
    """PEFT's tuner of one of our methods; a method sets `prefix` (`mertool_NAME_`) and `replacement` (a class)."""

    replacement: Any
    tuner_layer_cls = ReplacementLayer
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
        if not isinstance(target, ReplacementLayer):
            target = ReplacementLayer(target, self.prefix)
            target.set_adapter(self.active_adapters)
            setattr(parent, target_name, target)
        target.add(adapter_name, self.replacement(target.get_base_layer(), peft_config.size))

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT's own expects the adapter's name right before the last word, but a replacement may be a whole block.
        return key.replace(f".{cls.prefix}parts.{adapter_name}.", f".{cls.prefix}parts.", 1)


def make_config(tuner: type[ModuleTuner], targets: list[str], size: int | None = None) -> ReplacementConfig:
    """Return the PEFT configuration of a method of ours on the modules `targets`."""
    return ReplacementConfig(peft_type=_type_name(tuner), target_modules=set(targets), size=size)


def register(tuner: type[ModuleTuner]) -> None:
    """Make a method known to PEFT, by its tables of configurations, tuners and prefixes.

    `peft.utils.register_peft_method` (0.21) accepts only names in its enumeration PeftType, which a library cannot
    extend. The tables are keyed by these names, as strings: PeftType is an enumeration of strings.
    """
    name: Any = _type_name(tuner)
    peft.PEFT_TYPE_TO_CONFIG_MAPPING[name] = ReplacementConfig
    peft.PEFT_TYPE_TO_TUNER_MAPPING[name] = tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[name] = tuner.prefix


def _type_name(tuner: type[ModuleTuner]) -> str:
    return tuner.prefix.removesuffix("_").upper()


def output_width(module: nn.Module) -> int:
    """Return the output channels of a feed-forward module or a block: those of its last linear layer."""
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(module).__name__} has no linear layer to take the width from")
    return linear[-1].out_features


def hidden_states_of(block_output: Any) -> torch.Tensor:
    """Return the hidden states (B, T, D) in the output of a block: a tensor, or a tuple that begins with it."""
    return block_output[0] if isinstance(block_output, tuple) else block_output


def with_hidden_states(block_output: Any, hidden: torch.Tensor) -> Any:
    """Return the output of a block with other hidden states."""
    return (hidden, *block_output[1:]) if isinstance(block_output, tuple) else hidden

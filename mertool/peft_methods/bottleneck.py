"""Bottleneck adapters: down, ReLU, up, added to what they read; the up-projection begins at zero.

The method of Zhao et al. (2024), who place them in transformer blocks; placement inside the block is not
published, ours is after the feed-forward network (Houlsby et al., 2019): f <- f + W_up ReLU(W_down f + b1)
+ b2. Registered with PEFT as BOTTLENECK, so PEFT saves and loads it once this module is imported.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils import PeftType, register_peft_method
from torch import nn

SIZE = 64  # default bottleneck width
# The feed-forward module of HuBERT, wav2vec 2.0, WavLM and data2vec-audio blocks.
TARGETS = ("feed_forward",)


def config(targets: list[str], size: int) -> "BottleneckConfig":
    """PEFT configuration of bottlenecks of width `size` after the modules `targets`."""
    return BottleneckConfig(target_modules=targets, bottleneck=size)


@dataclass
class BottleneckConfig(PeftConfig):
    """What PEFT needs to rebuild the adapters."""

    target_modules: Any = field(default=None)
    bottleneck: int = SIZE
    exclude_modules: Any = None
    modules_to_save: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BOTTLENECK"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module followed by the active bottleneck."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig):
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add one adapter."""
        channels = _output_channels(self.get_base_layer())
        down, up = nn.Linear(channels, config.bottleneck), nn.Linear(config.bottleneck, channels)
        nn.init.zeros_(down.bias)  # PyTorch's random one can shut every ReLU of a narrow adapter
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        like = next(self.get_base_layer().parameters())
        self.to(device=like.device)
        self.set_adapter(self.active_adapters)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return hidden
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                down, up = self.bottleneck_down[name], self.bottleneck_up[name]
                bent = up(torch.relu(down(hidden.to(down.weight.dtype))))
                hidden = hidden + bent.to(hidden.dtype)
        return hidden


class BottleneckModel(BaseTuner):
    """PEFT's tuner for BOTTLENECK."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, Any] = {}  # noqa: RUF012  PEFT declares it so

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        return check_target_module_exists(peft_config, key)

    @staticmethod
    def _prepare_adapter_config(peft_config: Any, model_config: dict) -> Any:
        if peft_config.target_modules is None:
            raise ValueError("target_modules must name the modules that get a bottleneck")
        return peft_config

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
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        module = BottleneckLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            module.requires_grad_(False)
        setattr(parent, target_name, module)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if self.prefix not in name:
                parameter.requires_grad = False


def _output_channels(module: nn.Module) -> int:
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(module).__name__} holds no linear layer to take the width from")
    return linear[-1].out_features


def _register() -> None:
    """Add BOTTLENECK to PEFT's enumeration, which PEFT itself offers no call for, and register it."""
    if "BOTTLENECK" in PeftType.__members__:
        return
    member: Any = str.__new__(PeftType, "BOTTLENECK")
    member._name_, member._value_ = "BOTTLENECK", "BOTTLENECK"
    PeftType._member_map_["BOTTLENECK"] = member
    PeftType._member_names_.append("BOTTLENECK")
    PeftType._value2member_map_["BOTTLENECK"] = member
    type.__setattr__(PeftType, "BOTTLENECK", member)
    register_peft_method(name="bottleneck", config_cls=BottleneckConfig, model_cls=BottleneckModel)


_register()

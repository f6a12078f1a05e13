"""An encoder with the adapters of all folds, one of which is active."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mertool.adapters import methods as peft_methods
from mertool.encoders.base import Encoder
from mertool.errors import MertoolError


@dataclass
class MultiAdapterEncoder:
    """An encoder with several adapters whose features are comparable; each clip has one of them.

    The mean offset of the active adapter is subtracted from each layer. A single adapter's offset is a constant that
    standardisation removes, but features of several adapters share a store, and their offsets differ.

    encoder: an encoder of `mertool.encoders`, its model wrapped by PEFT.
    mean_offsets: the mean offset (L, D) of each adapter, by name, on the encoder's device.
    adapter_of_clip: the adapter of the clips that adapters were trained on, so that each gets the one that did not
    see it. All other clips get `final`.
    active: the adapter that is used now.
    """

    encoder: Encoder
    mean_offsets: Mapping[str, torch.Tensor]
    adapter_of_clip: Mapping[str, str] = field(default_factory=dict)
    active: str = peft_methods.FINAL

    @classmethod
    def load(
        cls, encoder: Encoder, adapters: Path, device: torch.device, *, adapter_of_clip: Mapping[str, str] | None = None
    ) -> "MultiAdapterEncoder":
        """Add all adapters of the folder `adapters` to a loaded encoder; `final` is active."""
        encoder.model = peft_methods.load_adapters(encoder.model, adapters).to(device)
        shape = (encoder.num_layers + 1, encoder.channels)
        offsets = {name: offset.to(device) for name, offset in peft_methods.load_mean_offsets(adapters, shape).items()}
        if unknown := set((adapter_of_clip or {}).values()) - offsets.keys():
            raise MertoolError(f"{adapters} lacks the adapters {', '.join(sorted(unknown))}: make them again")
        return cls(encoder, offsets, adapter_of_clip or {})

    def adapter_of(self, clip_id: str) -> str:
        """Return the name of a clip's adapter."""
        return self.adapter_of_clip.get(clip_id, peft_methods.FINAL)

    def select(self, adapter: str) -> None:
        """Activate an adapter by its name."""
        self.encoder.model.set_adapter(adapter)
        self.active = adapter

    @property
    def truncated(self) -> int:
        """Inputs that the encoder has cut so far."""
        return self.encoder.truncated

    def prepare(self, content: Any) -> Any:
        """Call `prepare` of the encoder."""
        return self.encoder.prepare(content)

    def cost(self, prepared: Any) -> float:
        """Call `cost` of the encoder."""
        return self.encoder.cost(prepared)

    def encode_prepared(self, prepared: list[Any], layers: tuple[int, ...]) -> list[torch.Tensor]:
        """Return (L, T, D) of `layers` for each clip, by the active adapter, without its mean offset."""
        offset = self.mean_offsets[self.active][list(layers), None]
        return [frames - offset for frames in self.encoder.encode_prepared(prepared, layers)]

"""An encoder with adapters, of which one is active: what it makes is the same space whichever that is."""

from pathlib import Path
from typing import Any

import torch

from mertool.adapters import methods as peft_methods


class MultiAdapterEncoder:
    """An encoder (see engine.pipeline) with the adapters of a folder; `final` is active at first.

    The mean shift of the active one is taken off each layer. For a single adapter that is a constant, which no
    standardised feature shows; but features of several adapters stand in one store, and each shifts them its own way.
    """

    def __init__(self, encoder: Any, adapters: Path, device: torch.device):
        self.encoder = encoder
        encoder.model = peft_methods.load_adapters(encoder.model, adapters).to(device)
        self.shifts = {name: shift.to(device) for name, shift in peft_methods.load_shifts(adapters).items()}
        self.active = peft_methods.FINAL

    def select(self, name: str) -> None:
        """Make the adapter `name` the active one."""
        self.encoder.model.set_adapter(name)
        self.active = name

    def prepare(self, item: Any) -> Any:
        """See the encoder's own."""
        return self.encoder.prepare(item)

    def cost(self, prepared: Any) -> float:
        """See the encoder's own."""
        return float(self.encoder.cost(prepared))

    def encode_prepared(self, prepared: list[Any], keep: tuple[int, ...]) -> list[torch.Tensor]:
        """(L, T, D) of layers `keep` for each clip."""
        shift = self.shifts[self.active][list(keep), None]
        return [frames - shift for frames in self.encoder.encode_prepared(prepared, keep)]

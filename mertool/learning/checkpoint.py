"""Checkpoints of a training: one safetensors file, with everything that is no tensor as JSON in its header."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from mertool.files import write_atomic

SAVE_SECONDS = 60.0  # a killed training loses about this much


class Checkpoint:
    """Saves and loads the state of a training at `path`.

    Attributes:
        path: The safetensors file.
        is_writer: False in all but one of the processes that train together; they only load.
        interval: Seconds between two saves; `should_save` follows it.
    """

    def __init__(self, path: Path, *, is_writer: bool = True, interval: float | None = None):
        self.path, self.is_writer = path, is_writer
        self.interval = SAVE_SECONDS if interval is None else interval
        self._last_save = time.monotonic()

    @property
    def should_save(self) -> bool:
        """True if this process writes and `interval` seconds have passed since the last save."""
        return self.is_writer and time.monotonic() - self._last_save >= self.interval

    def save(self, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        """Replace the file atomically: a process killed while it saves leaves the previous checkpoint."""
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(self.path, save(on_cpu, {"metadata": json.dumps(metadata)}))
        self._last_save = time.monotonic()

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return the saved tensors and metadata, or None if there is no readable file.

        A file that cannot be read is no error, because a training can always start anew.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
                return tensors, json.loads(file.metadata()["metadata"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def remove(self) -> None:
        """Remove the file, if this process writes."""
        if self.is_writer:
            self.path.unlink(missing_ok=True)


def training_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, best_weights: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return all tensors that a training with Adam needs to resume exactly, by names that do not clash in one file."""
    tensors = {f"now.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best_weights.items()}
    for name, parameter in model.named_parameters():
        tensors |= {f"adam.{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    return tensors


def restore_training(
    tensors: dict[str, torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Put what `training_tensors` returned back into model and optimizer; return the best weights."""
    model.load_state_dict(_with_prefix(tensors, "now."))
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors[f"adam.{key}.{name}"]
            # Adam keeps the step count on the CPU, whatever device the parameter is on.
            optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
    return _with_prefix(tensors, "best.")


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

"""One file that a killed training goes on from: safetensors, with counters as JSON in its header."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mertool.files import write_atomic

SECONDS = 60.0  # a killed run loses about this much


class Checkpoint:
    """Writes and reads `path`; only one process of several writes."""

    def __init__(self, path: Path, writes: bool = True, every: float | None = None):
        self.path, self.writes = path, writes
        self.every = SECONDS if every is None else every
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return self.writes and time.monotonic() - self._last >= self.every

    def save(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Replace the file at once, so that it is never half written."""
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(self.path, save(content, {"facts": json.dumps(facts)}))
        self._last = time.monotonic()

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """What was saved; None where nothing was, or nothing that can be read."""
        try:
            with safe_open(self.path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
                return tensors, json.loads(file.metadata()["facts"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def clear(self) -> None:
        """Remove the file."""
        if self.writes:
            self.path.unlink(missing_ok=True)


def adam_state(named: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What Adam knows of parameters, by names of its own, so that it can stand beside them in one file."""
    return {
        f"adam.{key}.{name}": value
        for name, parameter in named.items()
        for key, value in optimizer.state[parameter].items()
    }


def restore_adam(
    tensors: dict[str, torch.Tensor], named: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Give Adam back what `adam_state` saved."""
    for name, parameter in named.items():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors[f"adam.{key}.{name}"]
            optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)

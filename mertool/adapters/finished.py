"""Adapters that an unfinished run has trained already, kept in a folder beside it: the same command reuses them."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from mertool.adapters import methods as peft_methods
from mertool.adapters.cross_validation import AdapterSplit
from mertool.adapters.evaluation import AdapterResult, evaluate_adapter, measure_mean_offset
from mertool.adapters.layer_probes import FrozenProbes
from mertool.adapters.setup import Adapter, AdapterSetup, TrainingHistory
from mertool.files import make_folder, write_atomic
from mertool.learning.checkpoint import Checkpoint
from mertool.untrusted import read_json

ADAPTERS = "adapters"
TENSORS = (
    "head_logits",
    "frozen_logits",
    "adapted_logits",
    "frozen_layer_logits",
    "adapted_layer_logits",
    "cka",
)


class FinishedAdapters:
    """The folder of the trained adapters of a run that is not complete, and of their results.

    Attributes:
        folder: `.NAME.unfinished` beside the run NAME.
        is_writer: False in all but one of the processes that train together; they only read.
    """

    def __init__(self, run: Path, *, is_writer: bool):
        target = run.absolute()
        self.folder = target.with_name(f".{target.name}.unfinished")
        self.is_writer = is_writer

    @property
    def adapters(self) -> Path:
        """The folder of the adapters."""
        return self.folder / ADAPTERS

    def open(self, key: str) -> None:
        """Make the folder; one of a run with another `key` is removed, as its adapters would differ."""
        if not self.is_writer:
            return
        key_file = self.folder / "key.json"
        if key_file.exists() and read_json(key_file, f"remove {self.folder}") != key:
            shutil.rmtree(self.folder)
        if not key_file.exists():
            make_folder(self.folder)
            write_atomic(key_file, json.dumps(key))

    def load(self, name: str) -> AdapterResult | None:
        """Return the result of a finished adapter, None for one that has to be trained."""
        saved = self._result_file(name).load()
        if saved is None or not (self.adapters / name).is_dir():
            return None
        tensors, metadata = saved
        arrays = {key: tensors[key].numpy() for key in TENSORS}
        history = TrainingHistory(**metadata["history"])
        return AdapterResult(**arrays, history=history, n_trainable=metadata["n_trainable"])

    def save(
        self, setup: AdapterSetup, split: AdapterSplit, adapter: Adapter, frozen_probes: FrozenProbes
    ) -> AdapterResult:
        """Evaluate a trained adapter and keep both. The result is written last: without it no adapter is finished."""
        offset = measure_mean_offset(setup, split, adapter)
        result = evaluate_adapter(setup, split, adapter, frozen_probes)
        if self.is_writer:
            # A run killed right here may have left the adapter, but no result of it.
            shutil.rmtree(self.adapters / split.name, ignore_errors=True)
            peft_methods.save_adapter(adapter.peft_model, self.adapters, split.name)
            peft_methods.save_mean_offset(self.adapters / split.name, offset)
            tensors = {key: torch.from_numpy(np.ascontiguousarray(getattr(result, key))) for key in TENSORS}
            metadata = {"history": asdict(result.history), "n_trainable": result.n_trainable}
            self._result_file(split.name).save(tensors, metadata)
        return result

    def remove(self) -> None:
        """Remove the folder."""
        if self.is_writer:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _result_file(self, name: str) -> Checkpoint:
        return Checkpoint(self.folder / f"{name}.safetensors", is_writer=self.is_writer)

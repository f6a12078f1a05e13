"""An adapter for every fold and one for all clips, each kept as soon as it is trained.

What is done of an unfinished run lies in a folder beside it; the same command goes on from there.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mertool.adapters import methods as peft_methods
from mertool.adapters.adapter import Adaptation, Part, Trained
from mertool.adapters.trainer import History, Schedule
from mertool.errors import MertoolError
from mertool.files import make_folder, write_atomic
from mertool.learning.checkpoint import Checkpoint
from mertool.learning.folds import Folds, make_folds
from mertool.learning.labelled_clips import LabelledClips

ADAPTERS = "adapters"
DEVELOPMENT_PARTS = 8  # one of which chooses the best epoch
TENSORS = ("frozen", "adapted", "layers_frozen", "layers_adapted", "cka")


@dataclass(frozen=True)
class Job:
    """One adapter to train."""

    name: str
    part: Part


def plan_jobs(examples: LabelledClips, folds: Folds, seed: int, final: bool = True) -> list[Job]:
    """An adapter per fold, and with `final` one that learns from all folds.

    Each has a development part of an eighth of its own training clips, apart in speakers where they are known.
    """
    parts = [(f"fold{fold}", folds.train(fold), folds.held_out(fold)) for fold in range(folds.count)]
    if final:
        parts.append((peft_methods.FINAL, np.arange(len(examples)), np.arange(0)))
    return [Job(name, Part(*_split(examples, rows, seed), held_out)) for name, rows, held_out in parts]


def _split(examples: LabelledClips, rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and development part of `rows`; of too few clips for two parts, both are all of them."""
    chosen = np.zeros(len(examples), bool)
    chosen[rows] = True
    inner = examples.select(chosen)
    count = max(2, min(DEVELOPMENT_PARTS, int(np.bincount(inner.labels).max())))
    for known in (inner, replace(inner, speakers=(None,) * len(inner))):
        try:
            parts = make_folds(known, count, seed)
        except MertoolError:  # without some speaker one class only is left, or there are fewer clips than parts
            continue
        return rows[parts.train(0)], rows[parts.held_out(0)]
    return rows, rows


class Unfinished:
    """The folder of a run that is being made: trained adapters, their results, the checkpoint of the next one."""

    def __init__(self, run: Path, key: str, writes: bool):
        target = run.absolute()
        self.folder = target.with_name(f".{target.name}.unfinished")
        self.writes = writes
        if not writes:
            return
        note = self.folder / "key.json"
        if note.exists() and json.loads(note.read_text(encoding="utf-8")) != key:
            shutil.rmtree(self.folder)
        if not note.exists():
            make_folder(self.folder)
            write_atomic(note, json.dumps(key))

    @property
    def adapters(self) -> Path:
        """The folder of the trained adapters."""
        return self.folder / ADAPTERS

    def checkpoint(self, name: str) -> Checkpoint:
        """Where the training of one adapter is saved now and then."""
        return Checkpoint(self.folder / f"{name}.training.safetensors", is_writer=self.writes)

    def read(self, name: str) -> Trained | None:
        """What came of an adapter that is trained already."""
        if not (self.adapters / name).is_dir() or not (saved := self._result(name).load()):
            return None
        tensors, facts = saved
        arrays = {key: tensors[key].numpy() for key in TENSORS}
        return Trained(**arrays, history=History(**facts["history"]), trainable=facts["trainable"])

    def write(self, name: str, trained: Trained) -> None:
        """Keep what came of an adapter, whose weights are saved already."""
        if self.writes:
            tensors = {key: torch.from_numpy(np.ascontiguousarray(getattr(trained, key))) for key in TENSORS}
            facts = {"history": asdict(trained.history), "trainable": trained.trainable}
            self._result(name).save(tensors, facts)

    def clear(self) -> None:
        """Remove the folder."""
        if self.writes:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _result(self, name: str) -> Checkpoint:
        return Checkpoint(self.folder / f"{name}.safetensors", is_writer=self.writes)


def train_jobs(
    adaptation: Adaptation,
    jobs: list[Job],
    schedule: Schedule,
    unfinished: Unfinished,
    progress: Callable[[int, int], None],
) -> Iterator[Trained]:
    """Train every adapter that is not trained yet; what came of each, in order."""
    sizes = [schedule.epochs * -(-len(job.part.train) // schedule.batch) for job in jobs]
    for number, job in enumerate(jobs):
        before, total = sum(sizes[:number]), sum(sizes)
        trained = unfinished.read(job.name)
        adaptation.accelerator.wait_for_everyone()
        if trained is None:
            if unfinished.writes:  # a killed run may have saved the adapter, but not yet what came of it
                shutil.rmtree(unfinished.adapters / job.name, ignore_errors=True)
            checkpoint = unfinished.checkpoint(job.name)
            trained = adaptation.train(
                job.part,
                schedule,
                unfinished.adapters,
                job.name,
                checkpoint,
                lambda step, before=before, total=total: progress(before + step, total),
            )
            unfinished.write(job.name, trained)
            checkpoint.remove()
        progress(before + sizes[number], total)
        yield trained


def held_out(jobs: list[Job], trained: list[Trained], name: str) -> np.ndarray:
    """Logits (..., N, C) of all clips, `name` of Trained, by the adapter that did not learn from them."""
    rows = np.concatenate([job.part.held_out for job in jobs])
    joined = np.concatenate([getattr(found, name) for found in trained], axis=-2)
    return joined[..., np.argsort(rows), :]

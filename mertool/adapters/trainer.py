"""The training loop, on accelerate: one optimizer, length-sorted batches, early stopping, exact resume.

Whatever is random is drawn from (seed, epoch, row), never from a running generator, so that a run that was
killed needs no generator's state to go on exactly.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from mertool.errors import MertoolError
from mertool.learning.checkpoint import Checkpoint, adam_state, restore_adam
from mertool.learning.early_stopping import check_finite
from mertool.learning.lr_schedule import set_learning_rate, warmup_cosine

SORTED_OVER = 8  # batches' worth of clips are sorted by length together


@dataclass(frozen=True)
class Schedule:
    """epochs: at most so many; patience: epochs without a better development loss before the end.

    batch: labelled clips per step, over all devices. The learning rate rises over a tenth of the steps and
    falls as a cosine.
    """

    epochs: int = 30
    batch: int = 16
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.patience) < 1:
            raise MertoolError("--epochs, --batch and --patience must be at least 1")
        if not 0 < self.learning_rate < 1:
            raise MertoolError(f"learning rate {self.learning_rate:g}: give a number between 0 and 1")


@dataclass
class History:
    """By epoch: mean loss of the labels and of the hidden frames, loss of the development part.

    `start_loss` is that of the development part before the first step; if none is better, the best epoch is 0.
    """

    label_loss: list[float] = field(default_factory=list)
    mask_loss: list[float] = field(default_factory=list)
    development_loss: list[float] = field(default_factory=list)
    start_loss: float = float("inf")
    best_epoch: int = 0


class Task(Protocol):
    """What is trained: `objective` with its parameters, and how it is judged.

    `terms` gives the losses of the labels and of the hidden frames of some rows as sums, `weigh` what those of a
    whole batch are divided by, `parts` rows that fit one forward pass together, `peak` the learning rate of a
    parameter of the objective where that of most is `rate`.
    """

    mask_weight: float

    @property
    def objective(self) -> nn.Module: ...

    def terms(self, objective: nn.Module, rows: np.ndarray, epoch: int) -> tuple[torch.Tensor, torch.Tensor]: ...

    def weigh(self, rows: np.ndarray, epoch: int) -> tuple[float, float]: ...

    def parts(self, rows: np.ndarray) -> list[np.ndarray]: ...

    def peak(self, name: str, rate: float) -> float: ...

    def penalty(self) -> torch.Tensor: ...

    def development_loss(self) -> float: ...


@dataclass(frozen=True)
class Rows:
    """Labelled rows, unlabelled ones, and the frames (N,) of all rows there are."""

    labelled: np.ndarray
    unlabelled: np.ndarray
    lengths: np.ndarray


def fit(
    task: Task,
    rows: Rows,
    schedule: Schedule,
    accelerator: Accelerator,
    checkpoint: Checkpoint,
    progress: Callable[[int], None],
) -> History:
    """Train the task's objective in place, and leave it as it was after its best epoch.

    How it began is a candidate, too: an adapter that does harm on the development part is not kept.
    """
    trained = {name: p for name, p in task.objective.named_parameters() if p.requires_grad}
    peaks: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        peaks.setdefault(task.peak(name, schedule.learning_rate), []).append(parameter)
    groups = [{"params": some, "lr": peak} for peak, some in peaks.items()]
    optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    per_epoch = -(-len(rows.labelled) // schedule.batch)
    steps = schedule.epochs * per_epoch
    history, at = History(), _Counters()
    best: dict[str, torch.Tensor] = {}
    if saved := checkpoint.load():
        history, best, at = _restore(saved, trained, optimizer)
    else:
        history.start_loss, best = task.development_loss(), _copies(trained)
    objective, ready = accelerator.prepare(task.objective, optimizer)
    planned, plan = -1, []
    while at.step < steps and not at.stopped:
        epoch, within = divmod(at.step, per_epoch)
        if epoch != planned:
            planned, plan = epoch, batches(rows, schedule, epoch)
        set_learning_rate(ready, warmup_cosine(at.step, steps))
        losses = _step(task, objective, ready, plan[within], epoch, accelerator)
        check_finite(*losses, epoch=epoch + 1)
        at.label_loss += losses[0] / per_epoch
        at.mask_loss += losses[1] / per_epoch
        at.step += 1
        if within == per_epoch - 1:
            development = task.development_loss()
            check_finite(development, epoch=epoch + 1)
            _end_epoch(history, at, development, schedule.patience)
            if history.best_epoch == epoch + 1:
                best = _copies(trained)
        progress(at.step)
        if checkpoint.should_save:
            checkpoint.save(_state(trained, best, optimizer), {"history": asdict(history), "at": asdict(at)})
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(best[name])
    progress(steps)
    accelerator.free_memory()
    return history


def batches(rows: Rows, schedule: Schedule, epoch: int) -> list[np.ndarray]:
    """Rows of every step of an epoch: of similar length, in random order, unlabelled ones beside labelled."""
    random = np.random.default_rng((schedule.seed, epoch))
    count = -(-len(rows.labelled) // schedule.batch)
    drawn = []
    for some in (rows.labelled, random.permutation(rows.unlabelled)[: len(rows.labelled)]):
        order = random.permutation(some)
        size = SORTED_OVER * schedule.batch
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        in_order = [chunk[np.argsort(rows.lengths[chunk], kind="stable")] for chunk in chunks]
        drawn.append(np.array_split(np.concatenate([*in_order, np.zeros(0, np.int64)]), count))
    together = [np.concatenate(pair) for pair in zip(*drawn, strict=True)]
    return [together[number] for number in random.permutation(count)]


@dataclass
class _Counters:
    """Where a training stands: steps done, losses of the epoch so far, whether it has stopped early."""

    step: int = 0
    label_loss: float = 0.0
    mask_loss: float = 0.0
    stopped: bool = False


def _step(
    task: Task, objective: nn.Module, optimizer: Any, batch: np.ndarray, epoch: int, accelerator: Accelerator
) -> tuple[float, float]:
    """One step on a batch, its gradient gathered over parts and devices; the batch's two mean losses."""
    optimizer.zero_grad()
    weight, hidden = task.weigh(batch, epoch)
    world = accelerator.num_processes
    mine = batch[accelerator.process_index :: world]
    # A device without a clip of its own still takes part, with one that counts for nothing.
    share = 1.0 if len(mine) else 0.0
    pieces = task.parts(mine if len(mine) else batch[:1])
    totals = torch.zeros(2, device=accelerator.device)
    for number, piece in enumerate(pieces, 1):
        with nullcontext() if number == len(pieces) else accelerator.no_sync(objective):
            with accelerator.autocast():
                label, masked = task.terms(objective, piece, epoch)
            label, masked = share * label / max(weight, 1e-9), share * masked / max(hidden, 1.0)
            loss = world * (label + task.mask_weight * masked)  # gradients are averaged over devices
            if number == len(pieces):
                loss = loss + task.penalty()
            accelerator.backward(loss)
            totals += torch.stack([label, masked]).detach()
    accelerator.clip_grad_norm_([p for p in objective.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    if world > 1:
        totals = accelerator.reduce(totals, "sum")
    return float(totals[0]), float(totals[1])


def _end_epoch(history: History, at: _Counters, development: float, patience: int) -> None:
    history.label_loss.append(at.label_loss)
    history.mask_loss.append(at.mask_loss)
    history.development_loss.append(development)
    at.label_loss = at.mask_loss = 0.0
    history.best_epoch = best_epoch(history.start_loss, history.development_loss)
    at.stopped = len(history.development_loss) - history.best_epoch >= patience


def best_epoch(start: float, losses: list[float]) -> int:
    """The epoch of the least development loss; 0 is before the first."""
    return int(np.argmin([start, *losses]))


def _copies(trained: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained.items()}


def _state(
    trained: dict[str, nn.Parameter], best: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    tensors = {f"now.{name}": p for name, p in trained.items()} | {f"best.{name}": p for name, p in best.items()}
    return tensors | adam_state(trained, optimizer)


def _restore(
    saved: tuple[dict[str, torch.Tensor], dict[str, Any]],
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> tuple[History, dict[str, torch.Tensor], _Counters]:
    tensors, facts = saved
    best = {}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[f"now.{name}"])
            best[name] = tensors[f"best.{name}"].to(parameter.device)
    restore_adam(tensors, trained, optimizer)
    return History(**facts["history"]), best, _Counters(**facts["at"])

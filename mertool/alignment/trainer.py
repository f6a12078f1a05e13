"""The training loop: batches out of the stream, one optimizer, early stopping, exact resume.

Whatever is random is drawn from (seed, epoch) or (seed, step), so that a run that was killed needs no generator's
state to go on exactly.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from mertool.alignment.data import Frames, frame_statistics
from mertool.alignment.encoding import embed, encode_distributed, gather
from mertool.alignment.false_negatives import FalseNegativeFilter
from mertool.alignment.targets import Split
from mertool.encoders.aligner import Aligner
from mertool.errors import MertoolError
from mertool.learning.checkpoint import Checkpoint, adam_state, restore_adam
from mertool.learning.lr_schedule import set_rate
from mertool.learning.stopping import check_finite

# What is not given follows the number of clips: few clips get small batches, so that there are steps enough.
BATCHES, LEAST_BATCH, MOST_BATCH = 16, 64, 1024
STEPS, MOST_EPOCHS = 3000, 100


@dataclass(frozen=True)
class Schedule:
    """epochs: at most, None: about STEPS steps and at most MOST_EPOCHS. batch: clips a step, over all devices, None: a
    sixteenth of them, LEAST_BATCH to MOST_BATCH.

    patience: epochs without a better development loss before the end. The learning rate rises over a tenth of the
    steps and falls as a cosine. at_once: padded frames of one forward pass, None: what suits the device.
    """

    epochs: int | None = None
    batch: int | None = None
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    patience: int = 10
    seed: int = 0
    at_once: int | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise MertoolError(f"--epochs {self.epochs}: give at least 1")
        if (self.batch is not None and self.batch < 2) or self.patience < 1:
            raise MertoolError("--batch must be at least 2, --patience at least 1")
        if not 0 < self.learning_rate < 1:
            raise MertoolError(f"--learning-rate {self.learning_rate:g}: give a number between 0 and 1")

    def plan(self, clips: int) -> tuple[int, int]:
        """Epochs, and steps of each, for so many training clips."""
        batch = self.batch or min(MOST_BATCH, max(LEAST_BATCH, clips // BATCHES))
        per_epoch = -(-clips // batch)
        return self.epochs or min(MOST_EPOCHS, max(1, round(STEPS / per_epoch))), per_epoch


@dataclass(frozen=True)
class Pairs:
    """Clips with frames and acoustic vectors (N, A), their parts, and which pairs are no negatives."""

    frames: Frames
    anchors: np.ndarray
    parts: Split
    negatives: FalseNegativeFilter

    def acoustic(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """(B, A) of clips `rows`, float32."""
        return torch.from_numpy(self.anchors[rows]).to(device).float()


@dataclass
class History:
    """By epoch: mean loss of the training batches, loss of the development part as one batch."""

    loss: list[float] = field(default_factory=list)
    development_loss: list[float] = field(default_factory=list)
    best_epoch: int = 0


@dataclass
class _Counters:
    """Where a training stands: steps done, loss of the epoch so far, whether it has stopped early."""

    step: int = 0
    loss: float = 0.0
    stopped: bool = False


def fit(
    aligner: Aligner,
    objective: nn.Module,
    pairs: Pairs,
    schedule: Schedule,
    accelerator: Accelerator,
    saved: Checkpoint,
    progress: Callable[[int, int], None],
) -> History:
    """Train `aligner`, and what `objective` learns, in place; both are left as they were after the best epoch."""
    aligner.to(accelerator.device)
    both = nn.ModuleDict({"aligner": aligner, "objective": objective.to(accelerator.device)})
    peak = schedule.learning_rate
    optimizer = torch.optim.AdamW(
        [
            {"params": list(aligner.parameters()), "peak": peak, "weight_decay": schedule.weight_decay},
            {"params": list(objective.parameters()), "peak": peak, "weight_decay": 0.0},
        ],
        lr=peak,
    )
    history, at = History(), _Counters()
    best: dict[str, torch.Tensor] = {}
    if found := saved.load():
        history, best, at = _restore(found, both, optimizer)
    else:
        mean, deviation = frame_statistics(pairs.frames, pairs.parts.train)
        aligner.mean.copy_(torch.from_numpy(mean))
        aligner.std.copy_(torch.from_numpy(deviation))
    epochs, per_epoch = schedule.plan(len(pairs.parts.train))
    total = epochs * per_epoch
    while at.step < total and not at.stopped:
        epoch, within = divmod(at.step, per_epoch)
        with pairs.frames.mixed(pairs.parts.train, per_epoch, (schedule.seed, epoch), within) as batches:
            for rows, frames in batches:
                set_rate(optimizer, at.step, total)
                loss = _step(both, optimizer, pairs, rows, frames, schedule, at.step, accelerator)
                check_finite(epoch, loss)
                at.loss += loss / per_epoch
                at.step += 1
                if at.step % per_epoch == 0:
                    development = _development_loss(both, pairs, accelerator)
                    check_finite(epoch, development)
                    _end_epoch(history, at, development, schedule.patience)
                    if history.best_epoch == epoch + 1:
                        best = {name: value.detach().clone() for name, value in both.state_dict().items()}
                progress(at.step, total)
                if saved.due:
                    saved.save(_state(both, best, optimizer), {"history": asdict(history), "at": asdict(at)})
    both.load_state_dict(best)
    progress(total, total)
    return history


def _step(
    both: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    pairs: Pairs,
    rows: np.ndarray,
    frames: list[np.ndarray],
    schedule: Schedule,
    step: int,
    accelerator: Accelerator,
) -> float:
    """One step on a batch of clips, its loss. Every device reads the batch, embeds its share, and sees all vectors."""
    world, rank = accelerator.num_processes, accelerator.process_index
    both.train()
    optimizer.zero_grad()
    torch.manual_seed(int(np.random.SeedSequence((schedule.seed, step, rank)).generate_state(1)[0]))
    mine = frames[rank::world]
    if mine:
        vectors = embed(both["aligner"], mine, accelerator.device, schedule.at_once)
    else:
        vectors = torch.zeros(0, pairs.anchors.shape[1], device=accelerator.device)
    visual = gather(vectors, len(rows), accelerator)
    loss = _loss(both["objective"], visual, pairs, rows, accelerator.device)
    loss.backward()
    if world > 1:
        # The loss is the whole batch's on every device, its gradient there that of the clips embedded there.
        _reduce(both["aligner"], "sum", accelerator)
        _reduce(both["objective"], "mean", accelerator)
    nn.utils.clip_grad_norm_(both.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _loss(
    objective: nn.Module, visual: torch.Tensor, pairs: Pairs, rows: np.ndarray, device: torch.device
) -> torch.Tensor:
    acoustic = pairs.acoustic(rows, device)
    return objective(visual, acoustic, pairs.negatives.same(rows, acoustic))


@torch.no_grad()
def _development_loss(both: nn.ModuleDict, pairs: Pairs, accelerator: Accelerator) -> float:
    rows = pairs.parts.develop
    visual = encode_distributed(both["aligner"], pairs.frames, rows, accelerator)  # type: ignore[arg-type]
    return float(_loss(both["objective"], visual, pairs, rows, accelerator.device))


def _reduce(module: nn.Module, how: str, accelerator: Accelerator) -> None:
    """Join the gradients of all devices, in one message."""
    parameters = list(module.parameters())
    if not parameters:
        return
    for parameter in parameters:  # a device without a clip of the batch has none
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    joined = accelerator.reduce(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]), how)
    for parameter, part in zip(parameters, joined.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def _end_epoch(history: History, at: _Counters, development: float, patience: int) -> None:
    history.loss.append(at.loss)
    history.development_loss.append(development)
    at.loss = 0.0
    history.best_epoch = int(np.argmin(history.development_loss)) + 1
    at.stopped = len(history.loss) - history.best_epoch >= patience


def _state(
    both: nn.ModuleDict, best: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    tensors = {f"now.{name}": value for name, value in both.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    return tensors | adam_state(dict(both.named_parameters()), optimizer)


def _restore(
    found: tuple[dict[str, torch.Tensor], dict[str, Any]], both: nn.ModuleDict, optimizer: torch.optim.Optimizer
) -> tuple[History, dict[str, torch.Tensor], _Counters]:
    tensors, facts = found
    now, best = (
        {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
        for kind in ("now.", "best.")
    )
    both.load_state_dict(now)
    restore_adam(tensors, dict(both.named_parameters()), optimizer)
    return History(**facts["history"]), best, _Counters(**facts["at"])

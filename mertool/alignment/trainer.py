"""The training loop of `align`: batches, loss, step, learning rate, choice of the epoch, exact resume.

Random numbers are drawn from (seed, epoch) or (seed, step, process), never from a running generator, so that a
training that was killed resumes exactly without the state of a generator.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

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
from mertool.learning.checkpoint import Checkpoint, restore_training, training_tensors
from mertool.learning.early_stopping import EarlyStopping, check_finite
from mertool.learning.lr_schedule import set_learning_rate, warmup_cosine

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
    """Losses by epoch: mean over the training batches, and of the development clips as one batch.

    `best_epoch` is the one with the lowest development loss, counted from 1.
    """

    loss: list[float] = field(default_factory=list)
    development_loss: list[float] = field(default_factory=list)
    best_epoch: int = 0


def train(
    aligner: Aligner,
    loss_function: nn.Module,
    data: Pairs,
    *,
    schedule: Schedule,
    accelerator: Accelerator,
    checkpoint: Checkpoint,
    progress: Callable[[int, int], None],
) -> History:
    """Train `aligner` and the parameters of `loss_function` in place; both end with the weights of the best epoch."""
    model = nn.ModuleDict({"aligner": aligner, "loss": loss_function}).to(accelerator.device)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(aligner.parameters()), "weight_decay": schedule.weight_decay},
            # A temperature that decays to zero would make all similarities equal.
            {"params": list(loss_function.parameters()), "weight_decay": 0.0},
        ],
        lr=schedule.learning_rate,
    )
    stopping, history = EarlyStopping(schedule.patience), History()
    step, epoch_loss = 0, 0.0  # steps done, and the loss of the current epoch so far
    if saved := checkpoint.load():
        tensors, state = saved
        stopping.resume(state["stopping"], restore_training(tensors, model, optimizer))
        step, epoch_loss, history = state["step"], state["epoch_loss"], History(**state["history"])
    else:
        aligner.set_statistics(*frame_statistics(data.frames, data.parts.train))

    epochs, epoch_steps = schedule.plan(len(data.parts.train))
    while step < epochs * epoch_steps and not stopping.should_stop:
        epoch, first = divmod(step, epoch_steps)
        with data.frames.mixed(data.parts.train, epoch_steps, (schedule.seed, epoch), first) as batches:
            for rows, frames in batches:
                set_learning_rate(optimizer, warmup_cosine(step, epochs * epoch_steps))
                loss = _step(model, optimizer, data, rows, frames, schedule, step, accelerator)
                check_finite(loss, epoch=epoch + 1)
                epoch_loss += loss / epoch_steps
                step += 1
                if step % epoch_steps == 0:
                    development_loss = _development_loss(model, data, accelerator)
                    stopping.update(epoch + 1, development_loss, model.state_dict())
                    history.loss.append(epoch_loss)
                    history.development_loss.append(development_loss)
                    epoch_loss = 0.0
                progress(step, epochs * epoch_steps)
                if checkpoint.should_save:
                    checkpoint.save(
                        training_tensors(model, optimizer, stopping.best_weights),
                        {
                            "step": step,
                            "epoch_loss": epoch_loss,
                            "history": asdict(history),
                            "stopping": stopping.to_json(),
                        },
                    )
    stopping.restore(model.state_dict())
    history.best_epoch = stopping.best_epoch
    progress(epochs * epoch_steps, epochs * epoch_steps)
    return history


def _step(
    model: nn.ModuleDict,
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
    model.train()
    optimizer.zero_grad()
    torch.manual_seed(int(np.random.SeedSequence((schedule.seed, step, rank)).generate_state(1)[0]))
    mine = frames[rank::world]
    if mine:
        vectors = embed(model["aligner"], mine, accelerator.device, schedule.at_once)
    else:
        vectors = torch.zeros(0, pairs.anchors.shape[1], device=accelerator.device)
    visual = gather(vectors, len(rows), accelerator)
    loss = _loss(model["loss"], visual, pairs, rows, accelerator.device)
    loss.backward()
    if world > 1:
        # The loss is the whole batch's on every device, its gradient there that of the clips embedded there.
        _reduce(model["aligner"], "sum", accelerator)
        _reduce(model["loss"], "mean", accelerator)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _loss(
    objective: nn.Module, visual: torch.Tensor, pairs: Pairs, rows: np.ndarray, device: torch.device
) -> torch.Tensor:
    acoustic = pairs.acoustic(rows, device)
    return objective(visual, acoustic, pairs.negatives.same(rows, acoustic))


@torch.no_grad()
def _development_loss(model: nn.ModuleDict, pairs: Pairs, accelerator: Accelerator) -> float:
    rows = pairs.parts.develop
    visual = encode_distributed(model["aligner"], pairs.frames, rows, accelerator)  # type: ignore[arg-type]
    return float(_loss(model["loss"], visual, pairs, rows, accelerator.device))


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

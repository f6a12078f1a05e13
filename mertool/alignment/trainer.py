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

from mertool.alignment.data import AlignmentData, ClipBatch, frame_statistics
from mertool.alignment.encoding import all_gather_with_grad, encode_clips, encode_distributed
from mertool.devices import seeded_torch
from mertool.encoders.aligner import Aligner
from mertool.learning.checkpoint import Checkpoint, restore_training, training_tensors
from mertool.learning.early_stopping import EarlyStopping, check_finite
from mertool.learning.lr_schedule import set_learning_rate, warmup_cosine
from mertool.options.align import AlignOptions

# Defaults follow the number of clips: few clips get small batches, so that there are enough steps.
BATCHES_PER_EPOCH, MIN_BATCH, MAX_BATCH = 16, 64, 1024
STEPS, MAX_EPOCHS = 3000, 100
MAX_GRADIENT_NORM = 1.0


@dataclass
class AlignmentHistory:
    """Losses by epoch.

    Attributes:
        loss: Mean over the training batches.
        development_loss: Of the development clips as one batch.
        best_epoch: The epoch with the lowest development loss, counted from 1.
    """

    loss: list[float] = field(default_factory=list)
    development_loss: list[float] = field(default_factory=list)
    best_epoch: int = 0


def plan_epochs(n_clips: int, options: AlignOptions) -> tuple[int, int]:
    """Return the maximal number of epochs, and the steps of each, for that many training clips."""
    batch = options.batch or min(MAX_BATCH, max(MIN_BATCH, n_clips // BATCHES_PER_EPOCH))
    epoch_steps = -(-n_clips // batch)
    return options.epochs or min(MAX_EPOCHS, max(1, round(STEPS / epoch_steps))), epoch_steps


def train(
    aligner: Aligner,
    loss_function: nn.Module,
    data: AlignmentData,
    *,
    options: AlignOptions,
    accelerator: Accelerator,
    checkpoint: Checkpoint,
    progress: Callable[[int, int], None],
    max_padded_frames: int | None = None,
) -> AlignmentHistory:
    """Train `aligner` and the parameters of `loss_function` in place; both end with the weights of the best epoch.

    `progress` is called with the steps done and their total; `max_padded_frames` is that of `encode_clips`.
    """
    # One module, so that the parameters of the loss are checkpointed and restored with those of the aligner.
    model = nn.ModuleDict({"aligner": aligner, "loss": loss_function}).to(accelerator.device)
    optimizer = _make_optimizer(aligner, loss_function, options)
    stopping, history = EarlyStopping(options.patience), AlignmentHistory()
    step, epoch_loss = 0, 0.0  # steps done, and the loss of the current epoch so far
    if saved := checkpoint.load():
        tensors, state = saved
        stopping.resume(state["stopping"], restore_training(tensors, model, optimizer))
        step, epoch_loss, history = state["step"], state["epoch_loss"], AlignmentHistory(**state["history"])
    else:  # a checkpoint holds the statistics among the weights
        aligner.set_statistics(*frame_statistics(data.stream, data.split.train))

    def save() -> None:
        state = {"step": step, "epoch_loss": epoch_loss, "history": asdict(history), "stopping": stopping.to_json()}
        checkpoint.save(training_tensors(model, optimizer, stopping.best_weights), state)

    epochs, epoch_steps = plan_epochs(len(data.split.train), options)
    total_steps = epochs * epoch_steps
    while step < total_steps and not stopping.should_stop:
        epoch, first = divmod(step, epoch_steps)
        seed = (options.seed, epoch)
        with data.stream.shuffled_batches(data.split.train, epoch_steps, seed=seed, first=first) as batches:
            for batch in batches:
                set_learning_rate(optimizer, warmup_cosine(step, total_steps))
                # By step, so that a resumed training draws the same dropout masks; by process, whose clips differ.
                with seeded_torch(options.seed, step, accelerator.process_index):
                    loss = _training_step(
                        model, optimizer, batch, data=data, accelerator=accelerator, max_padded_frames=max_padded_frames
                    )
                check_finite(loss, epoch=epoch + 1)
                epoch_loss += loss / epoch_steps
                step += 1
                # Before the checkpoint: one after the last step of an epoch must hold the evaluation of that epoch.
                if step % epoch_steps == 0:
                    development_loss = _development_loss(aligner, loss_function, data, accelerator=accelerator)
                    stopping.update(epoch + 1, development_loss, model.state_dict())
                    history.loss.append(epoch_loss)
                    history.development_loss.append(development_loss)
                    epoch_loss = 0.0
                progress(step, total_steps)
                if checkpoint.should_save:
                    save()
    # Others may be trained after this one: a killed run must find that it was finished.
    if checkpoint.is_writer:
        save()
    stopping.restore(model.state_dict())
    history.best_epoch = stopping.best_epoch
    progress(total_steps, total_steps)
    return history


def _make_optimizer(aligner: Aligner, loss_function: nn.Module, options: AlignOptions) -> torch.optim.Optimizer:
    groups = [
        {"params": list(aligner.parameters()), "weight_decay": options.weight_decay},
        # Weight decay would pull the temperature of a loss towards 1.
        {"params": list(loss_function.parameters()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate)


def _training_step(
    model: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    batch: ClipBatch,
    *,
    data: AlignmentData,
    accelerator: Accelerator,
    max_padded_frames: int | None,
) -> float:
    """Make one optimizer step and return the loss of the batch.

    Every process reads the whole batch, encodes its share, and computes the loss on the vectors of all.
    """
    model.train()
    optimizer.zero_grad()
    share = batch.frames[accelerator.process_index :: accelerator.num_processes]
    if share:
        local = encode_clips(model["aligner"], share, accelerator.device, max_padded_frames=max_padded_frames)
    else:  # a batch may have fewer clips than there are processes
        local = torch.zeros(0, data.targets.shape[1], device=accelerator.device)
    visual = all_gather_with_grad(local, len(batch.rows), accelerator)
    loss = _loss(model["loss"], visual, data=data, rows=batch.rows)
    loss.backward()
    if accelerator.num_processes > 1:
        # Each process has the loss of the whole batch, but the aligner's gradient of its own clips only.
        _reduce_gradients(model["aligner"], "sum", accelerator)
        _reduce_gradients(model["loss"], "mean", accelerator)
    # After the reduction, so that all processes clip by the same norm and their weights stay equal.
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()
    return float(loss.detach())


def _loss(loss_function: nn.Module, visual: torch.Tensor, *, data: AlignmentData, rows: np.ndarray) -> torch.Tensor:
    acoustic = data.acoustic(rows, visual.device)
    return loss_function(visual, acoustic, data.false_negatives.mask(rows, acoustic))


@torch.no_grad()
def _development_loss(
    aligner: Aligner, loss_function: nn.Module, data: AlignmentData, *, accelerator: Accelerator
) -> float:
    rows = data.split.development
    visual = encode_distributed(aligner, data.stream, rows, accelerator=accelerator)
    return float(_loss(loss_function, visual, data=data, rows=rows))


def _reduce_gradients(module: nn.Module, reduction: str, accelerator: Accelerator) -> None:
    """Sum or average the gradients over all processes, as one message."""
    parameters = list(module.parameters())
    if not parameters:
        return
    for parameter in parameters:
        if parameter.grad is None:  # a process without a clip of the batch
            parameter.grad = torch.zeros_like(parameter)
    # One message instead of one per parameter, whose latencies would add up.
    gradients = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    reduced = accelerator.reduce(gradients, reduction).split([parameter.numel() for parameter in parameters])
    for parameter, gradient in zip(parameters, reduced, strict=True):
        parameter.grad = gradient.view_as(parameter).clone()

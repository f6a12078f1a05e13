"""Training an adapter: the loop, the step, both losses and the learning rate.

`train_adapter` reads from top to bottom: it makes a new adapter, runs epochs of `_training_step`, and keeps the moving
average of the weights. The number of epochs is fixed: with the average it matters little, and clips that choose an
epoch cannot be trained on. accelerate spreads each batch over processes; gradients are accumulated over forward passes
of clips of similar length.

Whatever is random is drawn from the seed and numbers such as the epoch and the row, never from a running generator. So
it depends neither on the number of processes nor on what the process did before.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mertool.adapters.cross_validation import AdapterSplit
from mertool.adapters.inputs import DROPPED_SHARE, epoch_batches, kept_frames
from mertool.adapters.masked_prediction import span_mask
from mertool.adapters.setup import Adapter, AdapterConfig, AdapterSetup, new_adapter
from mertool.devices import seeded_torch
from mertool.learning.early_stopping import check_finite
from mertool.learning.labelled_clips import IGNORE_INDEX
from mertool.learning.lr_schedule import set_learning_rate, warmup
from mertool.learning.weight_average import WeightAverage

HEAD_LEARNING_RATE, HEAD_WEIGHT_DECAY = 1e-3, 0.1
HEAD_DROPOUT = 0.3
WARMUP_STEPS, WARMUP_SHARE = 20, 0.1  # of the steps; the smaller counts
MAX_GRADIENT_NORM = 1.0
# What is drawn for a clip in an epoch, beside its mask: a last number of the seed keeps the draws apart.
FRAMES, DROPOUT = 1, 2


@dataclass
class TrainingProgress:
    """Reports the steps of several trainings, one after the other, as one progress.

    Attributes:
        update: Called with the number of steps done and that of all steps.
        total: Steps of all trainings.
        finished: Steps of the trainings that are finished.
    """

    update: Callable[[int, int], None]
    total: int
    finished: int = 0

    def report_step(self, step: int) -> None:
        """Report the number of steps done in the current training."""
        self.update(self.finished + step, self.total)

    def finish(self, n_steps: int) -> None:
        """Count the current training as finished."""
        self.finished += n_steps
        self.update(self.finished, self.total)


def train_adapter(setup: AdapterSetup, split: AdapterSplit, progress: Callable[[int], None]) -> Adapter:
    """Train an adapter and return it with the moving average of its weights; `progress` gets the number of steps done.

    Raises MertoolError if a loss is NaN or infinite.
    """
    config = setup.config
    with seeded_torch(config.seed):
        adapter = new_adapter(setup, split)
    trainable, history = adapter.trainable_parameters, adapter.history
    model, optimizer = setup.accelerator.prepare(adapter.model, _make_optimizer(trainable, config))
    # Without masks, unlabelled clips have no loss.
    unlabelled = setup.unlabelled_rows if adapter.target else np.zeros(0, np.int64)
    n_steps, step = config.count_steps(split), 0
    average = WeightAverage(trainable, n_steps=n_steps)
    warmup_steps = max(1, min(WARMUP_STEPS, round(WARMUP_SHARE * n_steps)))
    for epoch in range(config.epochs):
        batches = epoch_batches(
            split.train, unlabelled, setup.inputs.lengths, batch_size=config.batch_size, seed=(config.seed, epoch)
        )
        mean_losses = np.zeros(2)
        for batch in batches:
            set_learning_rate(optimizer, warmup(step, warmup_steps))
            # A method of PEFT may have dropout.
            with seeded_torch(config.seed, step):
                losses = _training_step(setup, adapter, model, optimizer=optimizer, batch=batch, epoch=epoch)
            check_finite(*losses, epoch=epoch + 1)
            average.update(trainable)
            mean_losses += np.array(losses) / len(batches)
            step += 1
            progress(step)
        history.label_loss.append(float(mean_losses[0]))
        history.mask_loss.append(float(mean_losses[1]))
    average.copy_to(trainable)
    setup.accelerator.free_memory()
    return adapter


def _make_optimizer(trainable: dict[str, nn.Parameter], config: AdapterConfig) -> torch.optim.Optimizer:
    """Return AdamW with another learning rate and weight decay for the classification head."""
    head = [parameter for name, parameter in trainable.items() if name.startswith("head.")]
    adapter = [parameter for name, parameter in trainable.items() if not name.startswith("head.")]
    groups: list[dict[str, Any]] = [
        {"params": adapter},
        {"params": head, "lr": HEAD_LEARNING_RATE, "weight_decay": HEAD_WEIGHT_DECAY},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


def _training_step(
    setup: AdapterSetup, adapter: Adapter, model: nn.Module, *, optimizer: Any, batch: np.ndarray, epoch: int
) -> tuple[float, float]:
    """Take one step on the rows `batch`; return their mean cross-entropy and mean reconstruction loss.

    `model` is the adapter's model as accelerate prepared it. Both losses are means over the whole batch, so the
    gradient does not depend on how the batch is divided into processes and forward passes.
    """
    accelerator, n_processes = setup.accelerator, setup.accelerator.num_processes
    optimizer.zero_grad()
    label_weight, n_masked = _loss_normalizers(setup, adapter, batch, epoch=epoch)
    own_rows = batch[accelerator.process_index :: n_processes]
    # The other processes wait for the gradient of this one: without clips of its own it gives one of weight 0.
    own_weight = 1.0 if len(own_rows) else 0.0
    share = 1 - DROPPED_SHARE if setup.blocks.can_drop_frames else 1.0
    micro_batches = setup.inputs.length_batches(own_rows if len(own_rows) else batch[:1], share)
    losses = torch.zeros(2, device=accelerator.device)
    for index, rows in enumerate(micro_batches, 1):
        is_last = index == len(micro_batches)
        clips = _load_micro_batch(setup, adapter, rows, epoch=epoch)
        with nullcontext() if is_last else accelerator.no_sync(model):
            with accelerator.autocast():
                logits, predictions = model(
                    clips.inputs, clips.lengths, labelled=clips.labelled, mask=clips.mask, dropout=clips.dropout
                )
                label_loss = _label_loss(setup, adapter, logits, labels=clips.labels)
                mask_loss = _mask_loss(adapter, predictions, clips)
            label_loss = own_weight * label_loss / max(label_weight, 1e-9)
            mask_loss = own_weight * mask_loss / max(n_masked, 1.0)
            # Gradients are averaged over processes, but the losses of processes add up: hence the factor.
            loss = n_processes * (label_loss + setup.config.mask_weight * mask_loss)
            accelerator.backward(loss)
        losses += torch.stack([label_loss, mask_loss]).detach()
    accelerator.clip_grad_norm_(list(adapter.trainable_parameters.values()), MAX_GRADIENT_NORM)
    optimizer.step()
    if n_processes > 1:
        losses = accelerator.reduce(losses, "sum")
    return float(losses[0]), float(losses[1])


def _label_loss(setup: AdapterSetup, adapter: Adapter, logits: torch.Tensor, *, labels: torch.Tensor) -> torch.Tensor:
    """Return the weighted cross-entropy of logits (n, C), summed over clips."""
    return nn.functional.cross_entropy(
        # Float32, because the losses of several forward passes are added up.
        logits.float(),
        labels,
        torch.as_tensor(adapter.class_weights, dtype=torch.float32, device=logits.device),
        reduction="sum",
        ignore_index=IGNORE_INDEX,
        label_smoothing=setup.config.label_smoothing,
    )


def _mask_loss(adapter: Adapter, predictions: torch.Tensor | None, clips: "_MicroBatch") -> torch.Tensor:
    """Return the reconstruction loss summed over masked frames, 0 without masks."""
    if adapter.target is None or predictions is None or clips.targets is None:
        return torch.zeros((), device=clips.inputs.device)
    return adapter.target.loss(predictions.float(), clips.targets)


def _loss_normalizers(setup: AdapterSetup, adapter: Adapter, batch: np.ndarray, *, epoch: int) -> tuple[float, float]:
    """Return the sum of class weights and the number of masked frames of a batch, over all processes."""
    labels = setup.labels[batch]
    label_weight = float(adapter.class_weights[labels[labels != IGNORE_INDEX]].sum())
    n_masked = sum(_mask(setup, row, epoch).sum() for row in batch) if adapter.target else 0.0
    return label_weight, float(n_masked)


def _mask(setup: AdapterSetup, row: int, epoch: int) -> np.ndarray:
    """Return the mask (T,) of the kept frames of a clip in an epoch."""
    return span_mask(len(_kept_frames(setup, row, epoch)), (setup.config.seed, epoch, int(row)))


def _kept_frames(setup: AdapterSetup, row: int, epoch: int) -> np.ndarray:
    """Return the indices of the frames of a clip that an epoch trains on."""
    n_frames = int(setup.inputs.lengths[row])
    if not setup.blocks.can_drop_frames:
        return np.arange(n_frames)
    return kept_frames(n_frames, (setup.config.seed, epoch, int(row), FRAMES))


def _head_dropout(setup: AdapterSetup, row: int, epoch: int) -> np.ndarray:
    """Return the factors (F,) of dropout on the pooled features of a clip in an epoch."""
    rng = np.random.default_rng((setup.config.seed, epoch, int(row), DROPOUT))
    is_kept = rng.random(setup.window_features.shape[1]) >= HEAD_DROPOUT
    return (is_kept / (1 - HEAD_DROPOUT)).astype(np.float32)


@dataclass(kw_only=True)
class _MicroBatch:
    """Clips of one forward pass.

    Attributes:
        inputs: Inputs (B, T, .) of the blocks in the kept frames, zero-padded.
        lengths: Frames (B,) of each clip.
        labelled: Indices (n,) of the clips that have a label.
        labels: Their class indices (n,).
        dropout: Factors (n, F) of their pooled features.
        mask: True (B, T) in masked frames; None without masks.
        targets: Reconstruction targets (M, ...) of the masked frames.
    """

    inputs: torch.Tensor
    lengths: torch.Tensor
    labelled: torch.Tensor
    labels: torch.Tensor
    dropout: torch.Tensor
    mask: torch.Tensor | None = None
    targets: torch.Tensor | None = None


def _load_micro_batch(setup: AdapterSetup, adapter: Adapter, rows: np.ndarray, *, epoch: int) -> _MicroBatch:
    kept = [_kept_frames(setup, row, epoch) for row in rows]
    inputs, lengths = setup.inputs.load(rows, kept)
    labels = torch.as_tensor(setup.labels[rows], device=inputs.device)
    labelled = torch.nonzero(labels != IGNORE_INDEX)[:, 0]
    if not len(labelled):
        # In every process the head must take part in the backward pass; an ignored label makes the loss 0.
        labelled = torch.arange(1, device=inputs.device)
    dropout = torch.from_numpy(np.stack([_head_dropout(setup, rows[index], epoch) for index in labelled.tolist()]))
    clips = _MicroBatch(
        inputs=inputs,
        lengths=lengths,
        labelled=labelled,
        labels=labels[labelled],
        dropout=dropout.to(inputs.device),
    )
    if adapter.target:
        masks = [_mask(setup, row, epoch) for row in rows]
        padded = nn.utils.rnn.pad_sequence([torch.from_numpy(mask) for mask in masks], batch_first=True)
        targets = [
            adapter.target.targets_for(int(row))[frames[mask]]
            for row, frames, mask in zip(rows, kept, masks, strict=True)
        ]
        clips.mask, clips.targets = padded.to(inputs.device), torch.cat(targets).to(inputs.device)
    return clips

"""Training an adapter: the loop, the step, both losses, the learning rate and the choice of the epoch.

`train_adapter` reads from top to bottom: it makes a new adapter, runs epochs of `_training_step`, and restores the
epoch with the lowest loss on the development clips. accelerate spreads each batch over processes; gradients are
accumulated over forward passes of clips of similar length.

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
from mertool.adapters.inputs import epoch_batches
from mertool.adapters.masked_prediction import span_mask
from mertool.adapters.setup import Adapter, AdapterConfig, AdapterSetup, new_adapter
from mertool.devices import seeded_torch
from mertool.learning.early_stopping import EarlyStopping, check_finite
from mertool.learning.labelled_clips import IGNORE_INDEX
from mertool.learning.lr_schedule import set_learning_rate, warmup_cosine
from mertool.probing.linear import INVERSE_PENALTY

MAX_HEAD_LEARNING_RATE = 2e-4  # the head starts at its optimum, from which large steps only lead away
MAX_GRADIENT_NORM = 1.0


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
        """Count the current training as finished, also if it stopped early."""
        self.finished += n_steps
        self.update(self.finished, self.total)


def train_adapter(setup: AdapterSetup, split: AdapterSplit, progress: Callable[[int], None]) -> Adapter:
    """Train an adapter and return it as it was after its best epoch; `progress` gets the number of steps done.

    Epoch 0, before the first step, is a candidate: an adapter that only raises the development loss has no effect.
    Raises MertoolError if a loss is NaN or infinite.
    """
    config = setup.config
    with seeded_torch(config.seed):
        adapter = new_adapter(setup, split)
    trainable, history = adapter.trainable_parameters, adapter.history
    model, optimizer = setup.accelerator.prepare(adapter.model, _make_optimizer(trainable, config))
    # Without masks, unlabelled clips have no loss.
    unlabelled = setup.unlabelled_rows if adapter.target else np.zeros(0, np.int64)
    early_stopping = EarlyStopping(config.patience)
    history.start_loss = _development_loss(setup, split, adapter)
    early_stopping.update(0, history.start_loss, trainable)
    step, n_steps = 0, config.count_steps(split)
    for epoch in range(config.epochs):
        batches = epoch_batches(
            split.train, unlabelled, setup.inputs.lengths, batch_size=config.batch_size, seed=(config.seed, epoch)
        )
        mean_losses = np.zeros(2)
        for batch in batches:
            set_learning_rate(optimizer, warmup_cosine(step, n_steps))
            # A method of PEFT may have dropout.
            with seeded_torch(config.seed, step):
                losses = _training_step(setup, adapter, model, optimizer=optimizer, batch=batch, epoch=epoch)
            check_finite(*losses, epoch=epoch + 1)
            mean_losses += np.array(losses) / len(batches)
            step += 1
            progress(step)
        development_loss = _development_loss(setup, split, adapter)
        early_stopping.update(epoch + 1, development_loss, trainable)
        history.label_loss.append(float(mean_losses[0]))
        history.mask_loss.append(float(mean_losses[1]))
        history.development_loss.append(development_loss)
        if early_stopping.should_stop:
            break
    early_stopping.restore(trainable)
    history.best_epoch = early_stopping.best_epoch
    setup.accelerator.free_memory()
    return adapter


def _make_optimizer(trainable: dict[str, nn.Parameter], config: AdapterConfig) -> torch.optim.Optimizer:
    """Return AdamW with a lower peak learning rate for the classification head."""
    head_rate = min(config.learning_rate, MAX_HEAD_LEARNING_RATE)
    head = [parameter for name, parameter in trainable.items() if name.startswith("head.")]
    adapter = [parameter for name, parameter in trainable.items() if not name.startswith("head.")]
    groups: list[dict[str, Any]] = [{"params": adapter}, {"params": head, "lr": head_rate}]
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
    micro_batches = setup.inputs.length_batches(own_rows if len(own_rows) else batch[:1])
    losses = torch.zeros(2, device=accelerator.device)
    for index, rows in enumerate(micro_batches, 1):
        is_last = index == len(micro_batches)
        clips = _load_micro_batch(setup, adapter, rows, epoch=epoch)
        with nullcontext() if is_last else accelerator.no_sync(model):
            with accelerator.autocast():
                logits, predictions = model(clips.inputs, clips.lengths, clips.labelled, clips.mask)
                label_loss = _label_loss(setup, adapter, logits, labels=clips.labels)
                mask_loss = _mask_loss(adapter, predictions, clips)
            label_loss = own_weight * label_loss / max(label_weight, 1e-9)
            mask_loss = own_weight * mask_loss / max(n_masked, 1.0)
            # Gradients are averaged over processes, but the losses of processes add up: hence the factor.
            loss = n_processes * (label_loss + setup.config.mask_weight * mask_loss)
            if is_last:
                # L2 penalty of the head, the one of the probe that it starts from.
                loss = loss + adapter.model.head.weight.square().sum() / (
                    2 * INVERSE_PENALTY * adapter.n_training_clips
                )
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
    """Return the mask (T,) of a clip in an epoch."""
    return span_mask(int(setup.inputs.lengths[row]), (setup.config.seed, epoch, int(row)))


@dataclass(kw_only=True)
class _MicroBatch:
    """Clips of one forward pass.

    Attributes:
        inputs: Inputs (B, T, .) of the blocks, zero-padded.
        lengths: Frames (B,) of each clip.
        labelled: Indices (n,) of the clips that have a label.
        labels: Their class indices (n,).
        mask: True (B, T) in masked frames; None without masks.
        targets: Reconstruction targets (M, ...) of the masked frames.
    """

    inputs: torch.Tensor
    lengths: torch.Tensor
    labelled: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor | None = None
    targets: torch.Tensor | None = None


def _load_micro_batch(setup: AdapterSetup, adapter: Adapter, rows: np.ndarray, *, epoch: int) -> _MicroBatch:
    inputs, lengths = setup.inputs.load(rows)
    labels = torch.as_tensor(setup.labels[rows], device=inputs.device)
    labelled = torch.nonzero(labels != IGNORE_INDEX)[:, 0]
    if not len(labelled):
        # In every process the head must take part in the backward pass; an ignored label makes the loss 0.
        labelled = torch.arange(1, device=inputs.device)
    clips = _MicroBatch(inputs=inputs, lengths=lengths, labelled=labelled, labels=labels[labelled])
    if adapter.target:
        masks = [_mask(setup, row, epoch) for row in rows]
        padded = nn.utils.rnn.pad_sequence([torch.from_numpy(mask) for mask in masks], batch_first=True)
        targets = [adapter.target.targets_for(int(row))[mask] for row, mask in zip(rows, masks, strict=True)]
        clips.mask, clips.targets = padded.to(inputs.device), torch.cat(targets).to(inputs.device)
    return clips


def _development_loss(setup: AdapterSetup, split: AdapterSplit, adapter: Adapter) -> float:
    """Return the mean cross-entropy of the development clips, without masks or class weights."""
    blocks = adapter.model.blocks
    pooled = setup.inputs.mean_pool(blocks, split.development, (blocks.last,))[0]
    labels = torch.as_tensor(setup.labels[split.development], device=pooled.device)
    with torch.no_grad():
        return float(nn.functional.cross_entropy(adapter.model.head(pooled), labels))

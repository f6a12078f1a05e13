"""Training of one stack: members of one width, learning rate and number of steps, as one head with a member axis."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mertool.fusion.batches import Batch, MemberSampler, class_weights, drop_modalities
from mertool.fusion.heads import FusionHead, HeadSpec, NumberHead, stack_members
from mertool.fusion.hyperparameters import Trial
from mertool.fusion.modality_features import ModalityFeatures
from mertool.fusion.number_loss import number_losses
from mertool.learning.early_stopping import EarlyStopping
from mertool.learning.labelled_clips import IGNORE_INDEX
from mertool.learning.lr_schedule import cosine, set_learning_rate
from mertool.significance import ClassMeasure, NumberMeasure

VALIDATION_BATCH = 64  # rows of each member that are scored at once
_BUILDING = threading.Lock()  # heads draw initial weights from torch's one global generator


@dataclass(frozen=True, kw_only=True)
class FusionTraining:
    """Batches, optimizer, regularisation and loss, the same for all members.

    Attributes:
        batch: Clips per step.
        weight_decay: Decoupled (AdamW), or added to the gradient (Adam) where `decoupled` is false.
        decoupled: See `weight_decay`.
        cosine: The learning rate decays to zero along half a cosine; else it is constant.
        modality_dropout: Probability that a modality of a clip is hidden in a training step.
        label_smoothing: Share of the label that is spread over all classes.
        class_weights: Weight the loss by inverse class frequency.
    """

    batch: int = 32
    weight_decay: float = 0.01
    decoupled: bool = True
    cosine: bool = True
    modality_dropout: float = 0.15
    label_smoothing: float = 0.0
    class_weights: bool = False


@dataclass(frozen=True, kw_only=True)
class EnsembleMember:
    """One model to be trained.

    Attributes:
        fold: The fold that it holds out.
        rows: Training rows (n,) of the features.
        labels: Class index or number (N,) of all rows; see `is_labelled` for rows without one.
        seed: Of the initial weights and the order of batches.
        trial: Width, dropout, learning rate and number of epochs.
        validation_rows: Rows that are scored after every epoch; None scores none.
        keep_best: Return the weights of the epoch that scored highest, not of the last one.
    """

    fold: int
    rows: torch.Tensor
    labels: torch.Tensor
    seed: int
    trial: Trial
    validation_rows: torch.Tensor | None = None
    keep_best: bool = False


@dataclass(frozen=True)
class TrainedMember:
    """Tensors of a trained member by name; mean training loss (E,) and validation score (E,) of each epoch."""

    state: dict[str, torch.Tensor]
    losses: np.ndarray
    validation_scores: np.ndarray


def train_stack(
    spec: HeadSpec,
    features: ModalityFeatures,
    members: Sequence[EnsembleMember],
    *,
    training: FusionTraining,
    on_epoch: Callable[[], None],
) -> list[TrainedMember]:
    """Train members of one width, learning rate, number of epochs and of batches. Calls `on_epoch` after each epoch.

    Random numbers of dropout come from one generator of the stack: with dropout, a member depends on the seeds of the
    members it is stacked with, but on nothing else that is trained.
    """
    trial, has_validation = members[0].trial, members[0].validation_rows is not None
    generator = _stack_generator(members, features.device)
    head = _initial_stack(spec, features, members, generator=generator)
    sampler = _member_sampler(members, training, spec.classes)
    optimizer = _make_optimizer(head, trial.learning_rate, training)
    best = [EarlyStopping() for _ in members]
    losses = torch.zeros(trial.epochs, len(members), device=features.device)
    scores = np.zeros((trial.epochs if has_validation else 0, len(members)))
    step, total_steps = 0, trial.epochs * sampler.steps
    for epoch in range(trial.epochs):
        head.train()
        for batch in sampler.epoch():
            clips = features.rows(batch.rows)
            present = drop_modalities(clips.present, training.modality_dropout, generator)
            outputs = head(clips.values, present)
            loss = _losses(head, outputs, batch, training)
            if training.cosine:
                set_learning_rate(optimizer, cosine(step, total_steps))
            optimizer.zero_grad()
            # A member's loss depends on its own weights only, so the gradient of the sum is the gradient of each.
            loss.sum().backward()
            optimizer.step()
            losses[epoch] += loss.detach() / sampler.steps
            step += 1
        if has_validation:
            scores[epoch] = validation_scores(head, features, members, classes=spec.classes)
            for early_stopping, score, state in zip(best, scores[epoch], _member_states(head), strict=True):
                early_stopping.update(epoch + 1, -score, state)
        on_epoch()
    states = [each.best_weights for each in best] if members[0].keep_best else _member_states(head)
    return [TrainedMember(*member) for member in zip(states, losses.T.cpu().numpy(), scores.T, strict=True)]


def _losses(head: FusionHead, outputs: torch.Tensor, batch: Batch, training: FusionTraining) -> torch.Tensor:
    """Return the loss (M,) of each member on outputs (M, B, C)."""
    if isinstance(head, NumberHead):
        return number_losses(outputs, batch.labels, batch.weights, mean=head.mean, std=head.std)
    return member_losses(outputs, batch.labels, batch.weights, smoothing=training.label_smoothing)


def member_losses(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, *, smoothing: float
) -> torch.Tensor:
    """Return the weighted mean cross-entropy (M,) of each member; logits (M, B, C), labels and weights (M, B)."""
    cross_entropies = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing, ignore_index=IGNORE_INDEX
    )
    return (cross_entropies.view(labels.shape) * weights).sum(1) / weights.sum(1).clamp(min=1e-12)


@torch.no_grad()
def validation_scores(
    head: FusionHead, features: ModalityFeatures, members: Sequence[EnsembleMember], *, classes: int
) -> np.ndarray:
    """Return the weighted F1 or CCC (M,) of each member on its own validation rows."""
    member_rows = [member.validation_rows for member in members if member.validation_rows is not None]
    # Members hold out unequally many rows: shorter ones are padded with row 0, which is not scored.
    rows = nn.utils.rnn.pad_sequence(member_rows, batch_first=True)
    labels = torch.stack([member.labels for member in members]).gather(1, rows).cpu().numpy()
    head.eval()
    logits = []
    for columns in rows.split(VALIDATION_BATCH, 1):
        clips = features.rows(columns)
        logits.append(head(clips.values, clips.present))
    outputs = torch.cat(logits, 1)
    predictions = (outputs[..., 0] if classes == 1 else outputs.argmax(-1)).cpu().numpy()
    measure = NumberMeasure() if classes == 1 else ClassMeasure(classes)
    tables = [
        measure.table(labels[member, : len(own)], predictions[member, : len(own)])
        for member, own in enumerate(member_rows)
    ]
    return measure.scores(np.stack(tables))[measure.main]


def _stack_generator(members: Sequence[EnsembleMember], device: torch.device) -> torch.Generator:
    """Return the generator of dropout and modality dropout, seeded by the seeds of all members of the stack."""
    seed = np.random.SeedSequence([member.seed for member in members]).generate_state(1, np.uint32)
    return torch.Generator(device).manual_seed(int(seed[0]))


def _initial_stack(
    spec: HeadSpec, features: ModalityFeatures, members: Sequence[EnsembleMember], *, generator: torch.Generator
) -> FusionHead:
    """Return the stacked head: initial weights by each member's seed, its standardizer fitted on its own rows."""
    heads: list[FusionHead] = []
    fitted: dict[int, FusionHead] = {}
    for member in members:
        with _BUILDING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(member.seed)
            head = spec.build(width=member.trial.width, dropout=member.trial.dropout).to(features.device)
        # Members of one fold share one tensor of rows, so its statistics are computed once for them.
        if fitted_head := fitted.get(id(member.rows)):
            for buffer, fitted_buffer in zip(head.buffers(), fitted_head.buffers(), strict=True):
                buffer.copy_(fitted_buffer)
        else:
            head.fit_standardizer([values[member.rows] for values in features.values], features.present[member.rows])
            if isinstance(head, NumberHead):
                head.fit_numbers(member.labels[member.rows])
            fitted[id(member.rows)] = head
        heads.append(head)
    return stack_members(heads, generator)


def _member_sampler(members: Sequence[EnsembleMember], training: FusionTraining, classes: int) -> MemberSampler:
    labels = torch.stack([member.labels for member in members])
    weights = torch.ones(labels.shape, device=labels.device)
    if training.class_weights:
        weights = torch.stack([class_weights(member.labels, member.rows, classes) for member in members])
    return MemberSampler(
        rows=[member.rows for member in members],
        labels=labels,
        weights=weights,
        seeds=[member.seed for member in members],
        batch=training.batch,
    )


def _make_optimizer(head: FusionHead, learning_rate: float, training: FusionTraining) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW if training.decoupled else torch.optim.Adam
    fused = next(head.parameters()).device.type in ("cpu", "cuda")
    return optimizer(head.parameters(), lr=learning_rate, weight_decay=training.weight_decay, fused=fused)


def _member_states(head: FusionHead) -> list[dict[str, torch.Tensor]]:
    """Return the tensors of each member by name, as views of the stack."""
    stacked = {name: value.detach() for name, value in [*head.named_parameters(), *head.named_buffers()]}
    members = len(next(iter(stacked.values())))
    return [{name: value[member] for name, value in stacked.items()} for member in range(members)]

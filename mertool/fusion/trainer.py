"""One stack: members of one width, learning rate and number of steps, trained as one head with an axis of members."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mertool.fusion.batches import Batch, Epoch, Features, Orders, class_weights, drop_modalities, jitter, mix, take
from mertool.fusion.heads import Dropout, Head, stack
from mertool.fusion.objective import losses
from mertool.fusion.random_bits import Factors, Noise
from mertool.metrics import scores_from_confusion

_BUILDING = threading.Lock()  # heads draw their initial weights from torch's one global generator


@dataclass(frozen=True)
class Schedule:
    """How members are trained, the same for all.

    weight_decay: decoupled (AdamW), or added to the gradient (Adam) where `decoupled` is false. cosine: the learning
    rate falls to zero along half a cosine. modality_dropout: share of modalities hidden in training. feature_noise: in
    deviations. mixup: strength of the Beta distribution. class_weights: classes weigh alike. contrast: weight of the
    agreement of modalities. Zero is off.
    """

    batch: int = 32
    weight_decay: float = 0.01
    decoupled: bool = True
    cosine: bool = True
    modality_dropout: float = 0.15
    feature_noise: float = 0.0
    mixup: float = 0.0
    label_smoothing: float = 0.0
    class_weights: bool = False
    contrast: float = 0.0


@dataclass(frozen=True)
class Member:
    """One model to be trained: on `rows`, by `labels` (N,) of which UNUSED ones are passed over.

    weights (N,): of rows in the loss, None is one. watched: rows that are scored after every epoch; the state of the
    best epoch is kept where `keep_best`.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    seed: int
    width: int = 128
    dropout: float = 0.3
    learning_rate: float = 1e-3
    epochs: int = 60
    weights: torch.Tensor | None = None
    watched: torch.Tensor | None = None
    keep_best: bool = False


@dataclass(frozen=True)
class Trained:
    """A trained member: its state, mean loss (E,) and weighted F1 of the watched rows (E,) by epoch."""

    state: dict[str, torch.Tensor]
    losses: np.ndarray
    scores: np.ndarray


def train_stack(
    build: Callable[[int, float], Head],
    features: Features,
    present: torch.Tensor,
    members: list[Member],
    classes: int,
    schedule: Schedule,
    done: Callable[[], None],
) -> list[Trained]:
    """Train members of one width, rate, number of epochs and of steps. `done` is called after each epoch."""
    noise = Noise([member.seed for member in members], present.device)
    head = _make(build, features, present, members, noise)
    orders = _orders(members, classes, schedule)
    scales = _deviations(features, present, members) if schedule.feature_noise else []
    optimizer = _optimizer(head, members[0].learning_rate, schedule)
    epochs, steps = members[0].epochs, -(-len(members[0].rows) // schedule.batch)
    watch = _Watch(features, present, members, classes) if members[0].watched is not None else None
    history = torch.zeros(epochs, len(members), device=present.device)
    for epoch in range(epochs):
        head.train()
        order = orders.epoch(schedule.batch)
        for step in range(steps):
            batch = _batch(order, step, features, present, scales, schedule, noise)
            if schedule.cosine:
                place = (epoch * steps + step) / (epochs * steps)
                optimizer.param_groups[0]["lr"] = members[0].learning_rate * (1 + math.cos(math.pi * place)) / 2
            loss = losses(head, batch, schedule.label_smoothing, schedule.contrast)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            history[epoch] += loss.detach() / steps
        if watch:
            watch.look(head)
        done()
    states = watch.states(head) if watch else _states(head)
    scores = np.stack(watch.scores) if watch else np.zeros((0, len(members)))
    return [
        Trained({name: value[number] for name, value in states.items()}, losses_of, scores[:, number])
        for number, losses_of in enumerate(history.T.cpu().numpy())
    ]


def _make(
    build: Callable[[int, float], Head],
    features: Features,
    present: torch.Tensor,
    members: list[Member],
    noise: Noise,
) -> Head:
    """The stacked head; each member's normaliser is fitted on its own rows."""
    heads: list[Head] = []
    fitted: dict[int, Head] = {}
    for member in members:
        with _BUILDING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(member.seed)
            head = build(member.width, member.dropout).to(present.device)
        if id(member.rows) in fitted:
            for own, other in zip(head.buffers(), fitted[id(member.rows)].buffers(), strict=True):
                own.copy_(other)
        else:
            head.fit_normaliser([values[member.rows] for values in features], present[member.rows])
            fitted[id(member.rows)] = head
        heads.append(head)
    stacked = stack(heads)
    rates = [member.dropout for member in members]
    factors = Factors(noise, rates)
    for module in stacked.modules():
        if isinstance(module, Dropout):
            module.rate, module.factors = 0.0, factors if any(rates) else None
    return stacked


def _orders(members: list[Member], classes: int, schedule: Schedule) -> Orders:
    weights = [
        torch.ones(len(member.labels), device=member.labels.device) if member.weights is None else member.weights
        for member in members
    ]
    if schedule.class_weights:
        pairs = zip(weights, members, strict=True)
        weights = [weight * class_weights(member.labels, member.rows, classes) for weight, member in pairs]
    labels = torch.stack([member.labels for member in members])
    rows, seeds = [member.rows for member in members], [member.seed for member in members]
    return Orders(rows, labels, torch.stack(weights), seeds)


def _deviations(features: Features, present: torch.Tensor, members: list[Member]) -> list[torch.Tensor]:
    """Deviation (M, 1, L, D) of each channel of each modality over a member's rows."""
    found = []
    for number, values in enumerate(features):
        each = [values[m.rows][present[m.rows, number]].std(0, correction=0) for m in members]
        found.append(torch.stack(each).nan_to_num().unsqueeze(1))
    return found


def _optimizer(head: Head, learning_rate: float, schedule: Schedule) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if schedule.decoupled else torch.optim.Adam
    fused = next(head.parameters()).device.type in ("cpu", "cuda")
    return kind(head.parameters(), lr=learning_rate, weight_decay=schedule.weight_decay, fused=fused)


def _batch(
    order: Epoch,
    step: int,
    features: Features,
    present: torch.Tensor,
    scales: list[torch.Tensor],
    schedule: Schedule,
    noise: Noise,
) -> Batch:
    chosen = slice(step * schedule.batch, (step + 1) * schedule.batch)
    found, here = take(features, present, order.rows[:, chosen])
    here = drop_modalities(here, schedule.modality_dropout, noise)
    if scales:
        found = jitter(found, scales, schedule.feature_noise, noise)
    batch = Batch(found, here, order.labels[:, chosen], order.weights[:, chosen])
    return mix(batch, schedule.mixup, noise) if schedule.mixup else batch


def _states(head: Head) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in [*head.named_parameters(), *head.named_buffers()]}


class _Watch:
    """Scores of members on rows that they are not trained on, epoch by epoch."""

    SIZE = 64  # rows at once, of each member

    def __init__(self, features: Features, present: torch.Tensor, members: list[Member], classes: int):
        self.features, self.present, self.classes = features, present, classes
        watched = [member.watched for member in members if member.watched is not None]
        length = max(map(len, watched))
        filled = [torch.cat([rows, rows.new_zeros(length - len(rows))]) for rows in watched]
        self.rows = torch.stack(filled)
        counts = torch.tensor([len(rows) for rows in watched], device=self.rows.device)
        self.real = torch.arange(length, device=self.rows.device) < counts[:, None]
        self.truth = torch.stack([member.labels for member in members]).gather(1, self.rows)
        self.keep = members[0].keep_best
        self.scores: list[np.ndarray] = []
        self.best: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def look(self, head: Head) -> None:
        """Score the members as they are, and keep those that were never better."""
        head.eval()
        guess = []
        for rows in self.rows.split(self.SIZE, 1):
            features, present = take(self.features, self.present, rows)
            guess.append(head(features, present).argmax(-1))
        cells = self.truth * self.classes + torch.cat(guess, 1)
        member = torch.arange(len(cells), device=cells.device)[:, None] * self.classes**2
        counts = torch.bincount((cells + member)[self.real], minlength=len(cells) * self.classes**2)
        table = counts.view(-1, self.classes, self.classes).cpu().numpy()
        found = scores_from_confusion(table)["waf"]
        better = np.ones(len(found), bool) if not self.scores else found > np.max(self.scores, axis=0)
        self.scores.append(found)
        if self.keep:
            chosen = torch.from_numpy(better).to(cells.device)
            for name, value in _states(head).items():
                if name not in self.best:
                    self.best[name] = value.clone()
                else:
                    self.best[name][chosen] = value[chosen]

    def states(self, head: Head) -> dict[str, torch.Tensor]:
        """Of the best epochs, where they are kept, else the last."""
        return self.best if self.keep else _states(head)

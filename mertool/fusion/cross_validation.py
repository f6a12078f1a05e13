"""One system: folds x seeds of a head over some features, and the logits of each clip by members that held it out.

Three ways. Without a search the hyper-parameters and the number of epochs are given, and nothing is chosen. With one,
it is nested: a development part of each fold's training clips chooses a draw and its number of epochs, and the fold's
members are then trained on all of its training clips; its held-out clips choose nothing. The protocol of MERTools
chooses both on the very clips that score them, and is optimistic.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from mertool.fusion import heads as fusion
from mertool.fusion.batches import UNUSED, Features
from mertool.fusion.ensemble import ensemble_logits, train_members
from mertool.fusion.hyperparameters import Draw, choose_nested, choose_optimistic, development_parts, make_draws
from mertool.fusion.trainer import Member, Schedule, Trained
from mertool.learning.folds import Folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.options.fuse import MERTOOLS, NESTED

OPTIMISTIC = "optimistic: epochs and hyper-parameters were chosen on the clips that score them"
Progress = Callable[[int, int], None]
Plan = tuple[Draw, int]  # hyper-parameters and epochs


@dataclass(frozen=True)
class Settings:
    """head: a file of mertool/fusion. search: number of draws, 0 takes `draw`. epochs: all, or with a search or
    MERTools's protocol the most. seeds: members per fold."""

    head: str
    classes: int
    draw: Draw = field(default_factory=Draw)
    search: int = 0
    protocol: str = NESTED
    seeds: int = 3
    epochs: int = 60
    seed: int = 0
    schedule: Schedule = field(default_factory=Schedule)


@dataclass(frozen=True)
class Extra:
    """Rows after the labelled ones that are only trained on: labels (F, U) by fold, UNUSED where a fold does not use
    a row, and weights (F, U), None is one. They are in no development part and in no fold's held-out part."""

    labels: np.ndarray
    weights: np.ndarray | None = None


@dataclass(frozen=True)
class Members:
    """Heads of one form, trained on folds x seeds: `state` has all tensors stacked, members on axis 0.

    `head` is a file of mertool/fusion; `fold` and `seed` say of each member which fold it did not see and its seed.
    """

    head: str
    width: int
    dropout: float
    state: dict[str, torch.Tensor]
    fold: tuple[int, ...]
    seed: tuple[int, ...]

    def __post_init__(self) -> None:
        counts = {len(self.fold), len(self.seed), *(len(value) for value in self.state.values())}
        if len(counts) != 1 or not self.fold:
            raise ValueError(f"members of uneven number: folds, seeds and tensors have {sorted(counts)}")


@dataclass(frozen=True)
class CrossValidatedEnsemble:
    """held_out: logits (N, C) of the labelled rows, each the mean of its fold's members. by_fold: logits (F, N + U, C)
    of all rows. plans: draw and epochs of each fold's members; chosen: how they came about, as JSON."""

    held_out: np.ndarray
    by_fold: np.ndarray
    groups: list[Members]
    losses: list[float]
    plans: list[Plan]
    chosen: dict[str, Any]


def train_system(
    features: Features,
    present: torch.Tensor,
    examples: LabelledClips,
    folds: Folds,
    settings: Settings,
    extra: Extra | None = None,
    progress: Progress = lambda *_: None,
    plans: list[Plan] | None = None,
) -> CrossValidatedEnsemble:
    """Train and score one system.

    features: list of (N + U, L, D), present (N + U, P): rows of the N examples, then of U `extra` ones. plans: draw
    and epochs of each fold where they are known from an earlier round, so that nothing is searched for.
    """
    data = _Data(features, present, examples, folds, settings, extra)
    chosen: dict[str, Any] = {}
    if plans is not None:
        settings = replace(settings, search=0)
    elif settings.protocol == MERTOOLS:
        plans, chosen = _optimistic(data, progress)
    elif settings.search:
        plans, chosen = _nested(data, progress)
    else:
        plans = [(settings.draw, settings.epochs)] * folds.count
    places = [(fold, seed) for fold in range(folds.count) for seed in range(settings.seeds)]
    seeds = [settings.seed * 1000 + seed for _, seed in places]
    watch = settings.protocol == MERTOOLS
    members = [
        data.member(fold, *plans[fold], seed, data.held_out(fold) if watch else None)
        for (fold, _), seed in zip(places, seeds, strict=True)
    ]
    before = data.count(settings.search)
    results = data.train(members, _after(progress, before, before + sum(member.epochs for member in members)))
    groups = _groups(settings.head, members, results, [fold for fold, _ in places])
    logits = logits_by_fold(groups, data.build, features, present, folds.count, settings.classes)
    held_out = logits[folds.fold_of, np.arange(len(examples))]
    longest = max(len(result.losses) for result in results)
    losses = [float(np.mean([r.losses[e] for r in results if e < len(r.losses)])) for e in range(longest)]
    return CrossValidatedEnsemble(held_out, logits, groups, losses, plans, chosen)


def logits_by_fold(
    groups: list[Members],
    build: Callable[[int, float], fusion.Head],
    features: Features,
    present: torch.Tensor,
    folds: int,
    classes: int,
) -> np.ndarray:
    """Mean logits (F, N, C) of each fold's members, on any rows."""
    total = np.zeros((folds, len(present), classes), np.float32)
    count = np.zeros(folds)
    for group in groups:
        logits = ensemble_logits(build(group.width, 0.0).to(present.device), group.state, features, present)
        np.add.at(total, np.array(group.fold), logits.cpu().numpy())
        np.add.at(count, np.array(group.fold), 1)
    return total / count[:, None, None].astype(np.float32)


class _Data:
    """What the members of a system are made from."""

    def __init__(
        self,
        features: Features,
        present: torch.Tensor,
        examples: LabelledClips,
        folds: Folds,
        settings: Settings,
        extra: Extra | None,
    ):
        self.features, self.present = features, present
        self.examples, self.folds, self.settings = examples, folds, settings
        device = present.device
        more = len(present) - len(examples)
        own = np.broadcast_to(examples.labels, (folds.count, len(examples)))
        added = np.full((folds.count, more), UNUSED) if extra is None else extra.labels
        self.labels = torch.from_numpy(np.concatenate([own, added], 1).astype(np.int64)).to(device)
        self.weights: torch.Tensor | None = None
        if extra is not None and extra.weights is not None:
            weights = np.concatenate([np.ones(own.shape), extra.weights], 1).astype(np.float32)
            self.weights = torch.from_numpy(weights).to(device)
        self.usable = present.any(1).cpu().numpy()
        shapes = [(int(values.shape[1]), int(values.shape[2])) for values in features]
        self.build = partial(_build, settings.head, shapes, settings.classes)
        self.rows: dict[tuple[int, bool], torch.Tensor] = {}

    def train_rows(self, fold: int, without: np.ndarray | None = None) -> torch.Tensor:
        """Rows that a fold's members learn from; one tensor for all of them, so that they share what is made of it."""
        key = fold, without is not None
        if key not in self.rows:
            labels = self.labels[fold].cpu().numpy()
            used = self.usable & (labels != UNUSED)
            used[self.folds.held_out(fold)] = False
            if without is not None:
                used[without] = False
            self.rows[key] = torch.from_numpy(np.flatnonzero(used)).to(self.present.device)
        return self.rows[key]

    def held_out(self, fold: int) -> torch.Tensor:
        """Labelled rows of a fold with some modality."""
        rows = self.folds.held_out(fold)
        return torch.from_numpy(rows[self.usable[rows]]).to(self.present.device)

    def member(
        self,
        fold: int,
        draw: Draw,
        epochs: int,
        seed: int,
        watched: torch.Tensor | None = None,
        without: np.ndarray | None = None,
    ) -> Member:
        """One member of a fold; the state of its best epoch is kept where it watches held-out rows."""
        return Member(
            self.train_rows(fold, without),
            self.labels[fold],
            seed,
            draw.width,
            draw.dropout,
            draw.learning_rate,
            epochs,
            None if self.weights is None else self.weights[fold],
            watched,
            keep_best=watched is not None and without is None,
        )

    def count(self, draws: int) -> int:
        """Epochs of a search."""
        return draws * self.folds.count * self.settings.epochs

    def train(self, members: list[Member], progress: Progress) -> list[Trained]:
        schedule, classes = self.settings.schedule, self.settings.classes
        return train_members(self.build, self.features, self.present, members, classes, schedule, progress)


def _build(head: str, shapes: list[tuple[int, int]], classes: int, width: int, dropout: float) -> fusion.Head:
    return fusion.build(head, shapes, classes, width, dropout)


def _after(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)


def _search(
    data: _Data, watched: list[torch.Tensor], without: list[np.ndarray | None], progress: Progress
) -> tuple[list[Draw], np.ndarray]:
    """Scores (F, D, E) of every draw on the rows that each fold watches."""
    settings = data.settings
    draws = make_draws(settings.search, settings.seed)
    members = [
        replace(
            data.member(fold, draw, settings.epochs, settings.seed * 1000 + 500 + number, watched[fold], without[fold]),
            keep_best=False,
        )
        for fold in range(data.folds.count)
        for number, draw in enumerate(draws)
    ]
    again = settings.epochs * settings.seeds * data.folds.count
    results = data.train(members, _after(progress, 0, data.count(len(draws)) + again))
    scores = np.stack([result.scores for result in results])
    return draws, scores.reshape(data.folds.count, len(draws), settings.epochs)


def _nested(data: _Data, progress: Progress) -> tuple[list[Plan], dict[str, Any]]:
    settings = data.settings
    parts = development_parts(data.examples, data.folds, settings.seed)
    watched = [torch.from_numpy(rows[data.usable[rows]]).to(data.present.device) for rows in parts]
    draws, scores = _search(data, watched, list(parts), progress)
    choices = choose_nested(scores)
    plans = [(draws[draw], epochs) for draw, epochs in choices]
    table = [
        {"fold": fold, **draw.to_json(), "epochs": epochs, "development_waf": float(scores[fold].max())}
        for fold, (draw, epochs) in enumerate(plans)
    ]
    return plans, {"draws": len(draws), "by_fold": table}


def _optimistic(data: _Data, progress: Progress) -> tuple[list[Plan], dict[str, Any]]:
    settings, folds = data.settings, data.folds
    chosen: dict[str, Any] = {"note": OPTIMISTIC}
    draw = settings.draw
    if settings.search:
        watched = [data.held_out(fold) for fold in range(folds.count)]
        draws, scores = _search(data, watched, [None] * folds.count, progress)
        best = choose_optimistic(scores)
        draw = draws[best]
        chosen |= {"draws": len(draws), **draw.to_json(), "waf": float(scores[:, best].max(-1).mean())}
    return [(draw, settings.epochs)] * folds.count, chosen


def _groups(head: str, members: list[Member], results: list[Trained], folds: list[int]) -> list[Members]:
    forms: dict[tuple[int, float], list[int]] = {}
    for number, member in enumerate(members):
        forms.setdefault((member.width, member.dropout), []).append(number)
    return [
        Members(
            head,
            width,
            dropout,
            {name: torch.stack([results[n].state[name] for n in numbers]) for name in results[numbers[0]].state},
            tuple(folds[n] for n in numbers),
            tuple(members[n].seed for n in numbers),
        )
        for (width, dropout), numbers in forms.items()
    ]

"""Cross-validated ensembles: folds x seeds of a head, and the logits of each clip by members that held it out.

Hyper-parameters come about in one of three ways. Without a search they are given, and nothing is selected. With one, it
is nested: a development split of each fold's training clips selects a trial and its number of epochs, and the fold's
members are then trained on all of its training clips; its held-out clips select nothing. The protocol of MERTools
selects both on the very clips that score them, so its scores are optimistic.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mertool.fusion.ensemble import Progress, ensemble_logits, train_members
from mertool.fusion.heads import HeadSpec
from mertool.fusion.hyperparameters import (
    Trial,
    development_splits,
    sample_trials,
    select_optimistic,
    select_per_fold,
)
from mertool.fusion.modality_features import ModalityFeatures
from mertool.fusion.trainer import EnsembleMember, FusionTraining, TrainedMember
from mertool.learning.folds import Folds
from mertool.learning.labelled_clips import IGNORE_INDEX, LabelledClips
from mertool.options.fuse import MERTOOLS, NESTED

OPTIMISTIC = "optimistic: epochs and hyper-parameters were chosen on the clips that score them"


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Configuration of the members that are trained under cross-validation.

    Attributes:
        head: Name of a file of `mertool/fusion/heads`.
        classes: Number of classes.
        trial: Hyper-parameters of all members; with `search` only the largest number of epochs counts.
        search: Number of random trials; 0 takes `trial`.
        protocol: `nested` or `mertools`, see the top of this file.
        seeds: Members per fold.
        seed: Of trials, development splits and members.
        training: Everything that all members have in common.
    """

    head: str
    classes: int
    trial: Trial = field(default_factory=Trial)
    search: int = 0
    protocol: str = NESTED
    seeds: int = 3
    seed: int = 0
    training: FusionTraining = field(default_factory=FusionTraining)


@dataclass(frozen=True, kw_only=True)
class EnsembleWeights:
    """Members of one width and dropout rate.

    Attributes:
        head: Name of a file of `mertool/fusion/heads`.
        width: Hidden size.
        dropout: Dropout rate of the training.
        state: All tensors of the head by name, stacked, members on axis 0.
        fold: The fold that each member held out.
        seed: The seed of each member.
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


@dataclass(frozen=True, kw_only=True)
class CrossValidatedEnsemble:
    """A trained ensemble and its logits.

    Attributes:
        held_out_logits: (N, C) of the labelled clips, the mean of the members that held the clip's fold out.
        fold_logits: (F, N + U, C) of all clips, the mean of each fold's members.
        can_score: (N,), true where a labelled clip has some modality.
        weights: All members, those of one shape together.
        losses: Mean training loss of each epoch.
        trials: Hyper-parameters of each fold's members.
        selection: How the trials were selected, as JSON; empty if they were given.
    """

    held_out_logits: np.ndarray
    fold_logits: np.ndarray
    can_score: np.ndarray
    weights: list[EnsembleWeights]
    losses: list[float]
    trials: list[Trial]
    selection: dict[str, Any]


def train_ensemble(
    features: ModalityFeatures,
    labelled: LabelledClips,
    folds: Folds,
    config: EnsembleConfig,
    *,
    pseudo_labels: np.ndarray | None = None,
    trials: list[Trial] | None = None,
    progress: Progress = lambda *_: None,
) -> CrossValidatedEnsemble:
    """Select hyper-parameters, train folds x seeds members and compute their logits.

    Args:
        features: Features of the N labelled clips, then of U unlabelled ones.
        labelled: Labels and speakers of the N clips.
        folds: Fold of each of the N clips.
        config: What is trained.
        pseudo_labels: Labels (F, U) of the unlabelled clips for each fold, IGNORE_INDEX where the fold does not train
            on the clip. Unlabelled clips are in no development split and in no fold.
        trials: Hyper-parameters of each fold, where they are known from an earlier round; nothing is searched then.
        progress: Called with the epochs of members that are done, and in all.
    """
    data = _FoldData(features, folds, _labels_by_fold(features, labelled, folds, pseudo_labels))
    search_epochs = 0
    selection: dict[str, Any] = {}
    if trials is None:
        search_epochs = config.search * folds.count * config.trial.epochs
        trials, selection = _select_trials(data, labelled, config, progress)
    is_official = config.protocol == MERTOOLS
    members = [
        member
        for fold, trial in enumerate(trials)
        for member in data.members(
            fold,
            [(trial, config.seed * 1000 + seed) for seed in range(config.seeds)],
            validation=data.held_out(fold) if is_official else None,
            keep_best=is_official,
        )
    ]
    total = search_epochs + sum(member.trial.epochs for member in members)
    trained = train_members(
        HeadSpec(config.head, features.shapes, config.classes),
        features,
        members,
        training=config.training,
        progress=lambda done, _: progress(search_epochs + done, total),
    )
    weights = _group_by_shape(config, members, trained)
    logits = fold_logits(weights, features, folds=folds.count, classes=config.classes)
    return CrossValidatedEnsemble(
        held_out_logits=logits[folds.fold_of, np.arange(len(labelled))],
        fold_logits=logits,
        can_score=features.has_any()[: len(labelled)],
        weights=weights,
        losses=_mean_losses(trained),
        trials=trials,
        selection=selection,
    )


def fold_logits(weights: list[EnsembleWeights], features: ModalityFeatures, *, folds: int, classes: int) -> np.ndarray:
    """Return the mean logits (F, N, C) of each fold's members on any N clips."""
    total = np.zeros((folds, len(features), classes), np.float32)
    count = np.zeros(folds)
    for group in weights:
        head = HeadSpec(group.head, features.shapes, classes).build(width=group.width).to(features.device)
        logits = ensemble_logits(head, group.state, features).cpu().numpy()
        np.add.at(total, np.array(group.fold), logits)
        np.add.at(count, np.array(group.fold), 1)
    return total / count[:, None, None].astype(np.float32)


@dataclass(frozen=True)
class _FoldData:
    """Training data of all folds: features of N + U clips, folds of the first N, and labels (F, N + U)."""

    features: ModalityFeatures
    folds: Folds
    labels: np.ndarray

    def held_out(self, fold: int) -> np.ndarray:
        """Return the rows of a fold's labelled clips that have some modality."""
        rows = self.folds.held_out(fold)
        return rows[self.features.has_any()[rows]]

    def members(
        self,
        fold: int,
        trials: Iterable[tuple[Trial, int]],
        *,
        validation: np.ndarray | None = None,
        keep_best: bool = False,
    ) -> list[EnsembleMember]:
        """Return a member of the fold for each (trial, seed); none trains on the `validation` rows."""
        is_training = self.features.has_any() & (self.labels[fold] != IGNORE_INDEX)
        is_training[self.folds.held_out(fold)] = False
        if validation is not None:
            is_training[validation] = False
        device = self.features.device
        # One tensor for all members of the fold: the trainer computes its statistics once.
        rows = torch.from_numpy(np.flatnonzero(is_training)).to(device)
        labels = torch.from_numpy(self.labels[fold]).to(device)
        return [
            EnsembleMember(
                rows=rows,
                labels=labels,
                seed=seed,
                trial=trial,
                validation_rows=None if validation is None else torch.from_numpy(validation).to(device),
                keep_best=keep_best,
            )
            for trial, seed in trials
        ]


def _labels_by_fold(
    features: ModalityFeatures, labelled: LabelledClips, folds: Folds, pseudo_labels: np.ndarray | None
) -> np.ndarray:
    """Return labels (F, N + U): the true ones of labelled clips, and each fold's pseudo-labels of the others."""
    labels = np.full((folds.count, len(features)), IGNORE_INDEX, np.int64)
    labels[:, : len(labelled)] = labelled.labels
    if pseudo_labels is not None:
        labels[:, len(labelled) :] = pseudo_labels
    return labels


def _select_trials(
    data: _FoldData, labelled: LabelledClips, config: EnsembleConfig, progress: Progress
) -> tuple[list[Trial], dict[str, Any]]:
    """Return the hyper-parameters of each fold, and how they were selected, as JSON."""
    folds, is_official = data.folds, config.protocol == MERTOOLS
    if not config.search:
        return [config.trial] * folds.count, {"note": OPTIMISTIC} if is_official else {}
    candidates = sample_trials(config.search, epochs=config.trial.epochs, seed=config.seed)
    if is_official:
        held_out = [data.held_out(fold) for fold in range(folds.count)]
        scores = _score_trials(data, candidates, held_out, config=config, progress=progress)
        best, waf = select_optimistic(candidates, scores)
        chosen = {name: value for name, value in best.to_json().items() if name != "epochs"}
        return [best] * folds.count, {"note": OPTIMISTIC, "draws": len(candidates), **chosen, "waf": waf}
    splits = development_splits(labelled, folds, config.seed)
    scores = _score_trials(data, candidates, splits, config=config, progress=progress)
    trials = select_per_fold(candidates, scores)
    by_fold = [
        {"fold": fold, **trial.to_json(), "development_waf": float(scores[fold].max())}
        for fold, trial in enumerate(trials)
    ]
    return trials, {"draws": len(candidates), "by_fold": by_fold}


def _score_trials(
    data: _FoldData,
    trials: list[Trial],
    splits: list[np.ndarray],
    *,
    config: EnsembleConfig,
    progress: Progress,
) -> np.ndarray:
    """Return the weighted F1 (F, T, E) of each trial after each epoch on the rows that each fold validates on."""
    # Seeds from 500 on, so that no member of the search is one of those trained later.
    seeded = [(trial, config.seed * 1000 + 500 + number) for number, trial in enumerate(trials)]
    has_any = data.features.has_any()
    members = [
        member
        for fold, split in enumerate(splits)
        for member in data.members(fold, seeded, validation=split[has_any[split]])
    ]
    epochs = config.trial.epochs
    total = (len(trials) + config.seeds) * data.folds.count * epochs
    trained = train_members(
        HeadSpec(config.head, data.features.shapes, config.classes),
        data.features,
        members,
        training=config.training,
        progress=lambda done, _: progress(done, total),
    )
    return np.stack([result.validation_waf for result in trained]).reshape(data.folds.count, len(trials), epochs)


def _group_by_shape(
    config: EnsembleConfig, members: list[EnsembleMember], trained: list[TrainedMember]
) -> list[EnsembleWeights]:
    """Stack the members of one width and dropout rate; they are `config.seeds` per fold, fold by fold."""
    shapes: dict[tuple[int, float], list[int]] = {}
    for index, member in enumerate(members):
        shapes.setdefault((member.trial.width, member.trial.dropout), []).append(index)
    return [
        EnsembleWeights(
            head=config.head,
            width=width,
            dropout=dropout,
            state={name: torch.stack([trained[index].state[name] for index in indices]) for name in trained[0].state},
            fold=tuple(index // config.seeds for index in indices),
            seed=tuple(members[index].seed for index in indices),
        )
        for (width, dropout), indices in shapes.items()
    ]


def _mean_losses(trained: list[TrainedMember]) -> list[float]:
    """Return the mean loss of each epoch over the members that had this epoch."""
    epochs = max(len(member.losses) for member in trained)
    return [
        float(np.mean([member.losses[epoch] for member in trained if epoch < len(member.losses)]))
        for epoch in range(epochs)
    ]

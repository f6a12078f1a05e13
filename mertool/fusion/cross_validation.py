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

from mertool.fusion.ensemble import Progress, train_members
from mertool.fusion.ensemble_weights import EnsembleWeights, group_by_shape, member_logits
from mertool.fusion.heads import HeadSpec
from mertool.fusion.hyperparameters import (
    Trial,
    development_splits,
    sample_trials,
    select_optimistic,
    select_per_fold,
)
from mertool.fusion.modality_features import FusionData
from mertool.fusion.trainer import EnsembleMember, FusionTraining, TrainedMember
from mertool.learning.labelled_clips import is_labelled
from mertool.options.fuse import MERTOOLS, NESTED

OPTIMISTIC = "optimistic: epochs and hyper-parameters were chosen on the clips that score them"


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Configuration of the members that are trained under cross-validation.

    Attributes:
        head: Name of a file of `mertool/fusion/heads`.
        classes: Number of classes; 1 for a number.
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
class CrossValidatedEnsemble:
    """A trained ensemble and its logits, or its numbers, which are one output.

    Attributes:
        held_out_logits: (N, C) of the labelled clips, the mean of the members that held the clip's fold out.
        single_logits: (S, N, C) of the labelled clips by single members: of repetition s, by the one that held the
            clip's fold out.
        fold_logits: (F, N + U, C) of all clips, the mean of each fold's members.
        can_score: (N,), true where a labelled clip has some modality.
        weights: All members, those of one shape together.
        losses: Mean training loss of each epoch.
        trials: Hyper-parameters of each fold's members.
        selection: How the trials were selected, as JSON; empty if they were given.
    """

    held_out_logits: np.ndarray
    single_logits: np.ndarray
    fold_logits: np.ndarray
    can_score: np.ndarray
    weights: list[EnsembleWeights]
    losses: list[float]
    trials: list[Trial]
    selection: dict[str, Any]


def train_ensemble(
    data: FusionData,
    config: EnsembleConfig,
    *,
    trials: list[Trial] | None = None,
    progress: Progress = lambda *_: None,
) -> CrossValidatedEnsemble:
    """Select hyper-parameters, train folds x seeds members and compute their logits.

    Args:
        data: Clips, labels and folds. Unlabelled clips are in no development split and in no fold.
        config: What is trained.
        trials: Hyper-parameters of each fold, where they are known from an earlier round; nothing is searched then.
        progress: Called with the epochs of members that are done, and in all.
    """
    search_epochs = 0
    selection: dict[str, Any] = {}
    if trials is None:
        search_epochs = config.search * data.folds.count * config.trial.epochs
        trials, selection = _select_trials(data, config, progress)
    is_official = config.protocol == MERTOOLS
    members = [
        member
        for fold, trial in enumerate(trials)
        for member in _fold_members(
            data,
            fold,
            [(trial, _member_seed(config, number)) for number in range(config.seeds)],
            # The official script scores the held-out clips after every epoch, and keeps the best one.
            validation=data.held_out(fold) if is_official else None,
            keep_best=is_official,
        )
    ]
    total = search_epochs + sum(member.trial.epochs for member in members)
    trained = train_members(
        HeadSpec(config.head, data.features.shapes, config.classes),
        data.features,
        members,
        training=config.training,
        progress=lambda done, _: progress(search_epochs + done, total),
    )
    weights = group_by_shape(config.head, members, trained)
    by_fold, single = _score_members(data, config, weights)
    return CrossValidatedEnsemble(
        held_out_logits=by_fold[data.folds.fold_of, np.arange(len(data.labelled))],
        single_logits=single,
        fold_logits=by_fold,
        can_score=data.can_score(),
        weights=weights,
        losses=_mean_losses(trained),
        trials=trials,
        selection=selection,
    )


def _member_seed(config: EnsembleConfig, number: int) -> int:
    """Return the seed of a member of every fold; members of two ensembles share one only if `config.seed` is equal."""
    return config.seed * 1000 + number


def _score_members(
    data: FusionData, config: EnsembleConfig, weights: list[EnsembleWeights]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean logits (F, N + U, C) of each fold's members, and those (S, N, C) of single held-out ones."""
    by_fold = np.zeros((data.folds.count, len(data.features), config.classes), np.float32)
    single = np.zeros((config.seeds, len(data.labelled), config.classes), np.float32)
    for fold, seed, logits in member_logits(weights, data.features, classes=config.classes):
        by_fold[fold] += logits
        rows = data.folds.held_out(fold)
        single[seed - _member_seed(config, 0), rows] = logits[rows]
    return by_fold / np.float32(config.seeds), single


def _fold_members(
    data: FusionData,
    fold: int,
    trials: Iterable[tuple[Trial, int]],
    *,
    validation: np.ndarray | None = None,
    keep_best: bool = False,
) -> list[EnsembleMember]:
    """Return a member of the fold for each (trial, seed); none trains on the `validation` rows."""
    fold_labels = data.labels_of(fold)
    is_training = data.features.has_any() & is_labelled(fold_labels)
    is_training[data.folds.held_out(fold)] = False
    if validation is not None:
        is_training[validation] = False
    device = data.features.device
    # One tensor for all members of the fold: the trainer computes its statistics once.
    rows = torch.from_numpy(np.flatnonzero(is_training)).to(device)
    labels = torch.from_numpy(fold_labels).to(device)
    return [
        EnsembleMember(
            fold=fold,
            rows=rows,
            labels=labels,
            seed=seed,
            trial=trial,
            validation_rows=None if validation is None else torch.from_numpy(validation).to(device),
            keep_best=keep_best,
        )
        for trial, seed in trials
    ]


def _select_trials(data: FusionData, config: EnsembleConfig, progress: Progress) -> tuple[list[Trial], dict[str, Any]]:
    """Return the hyper-parameters of each fold, and how they were selected, as JSON."""
    folds, is_official = data.folds, config.protocol == MERTOOLS
    if not config.search:
        return [config.trial] * folds.count, {"note": OPTIMISTIC} if is_official else {}
    candidates = sample_trials(config.search, epochs=config.trial.epochs, seed=config.seed)
    if is_official:
        splits = [data.held_out(fold) for fold in range(folds.count)]
    else:
        splits = development_splits(data.labelled, folds, config.seed)
    scores = _score_trials(data, candidates, splits, config=config, progress=progress)
    if is_official:
        best, waf = select_optimistic(candidates, scores)
        chosen = {name: value for name, value in best.to_json().items() if name != "epochs"}
        return [best] * folds.count, {"note": OPTIMISTIC, "draws": len(candidates), **chosen, "waf": waf}
    trials, main = select_per_fold(candidates, scores), "ccc" if config.classes == 1 else "waf"
    by_fold = [
        {"fold": fold, **trial.to_json(), f"development_{main}": float(scores[fold].max())}
        for fold, trial in enumerate(trials)
    ]
    return trials, {"draws": len(candidates), "by_fold": by_fold}


def _score_trials(
    data: FusionData,
    trials: list[Trial],
    splits: list[np.ndarray],
    *,
    config: EnsembleConfig,
    progress: Progress,
) -> np.ndarray:
    """Return the main score (F, T, E) of each trial after each epoch on the rows that each fold validates on."""
    # Seeds from 500 on, so that no member of the search is one of those trained later.
    seeded = [(trial, _member_seed(config, 500 + number)) for number, trial in enumerate(trials)]
    has_any = data.features.has_any()
    members = [
        member
        for fold, split in enumerate(splits)
        for member in _fold_members(data, fold, seeded, validation=split[has_any[split]])
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
    return np.stack([result.validation_scores for result in trained]).reshape(data.folds.count, len(trials), epochs)


def _mean_losses(trained: list[TrainedMember]) -> list[float]:
    """Return the mean loss of each epoch over the members that had this epoch."""
    epochs = max(len(member.losses) for member in trained)
    return [
        float(np.mean([member.losses[epoch] for member in trained if epoch < len(member.losses)]))
        for epoch in range(epochs)
    ]

"""All probes of all layers under the same folds: linear, perceptrons, learned layer weights, speakers."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from mertool.learning.folds import Folds, speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.probing.layer_weights import WeightSchedule, train_layer_weights
from mertool.probing.mlp import MlpSchedule, train_mlp
from mertool.probing.nested_cv import ProbePredictions, Progress, layer_chunks, probe_linear, within
from mertool.probing.speakers import SpeakerReadout, probe_speakers


@dataclass(frozen=True)
class Plan:
    """What to fit: `members` are the folds of each repetition (the same ones, where they were given), with `seeds`."""

    members: list[Folds]
    seeds: list[int]
    classes: int
    estimator: str
    mlp: bool
    device: torch.device

    @property
    def shuffles(self) -> list[Folds]:
        """The repetitions that differ in their folds: few speakers can be parted in few ways, or in one."""
        found: dict[tuple[int, ...], Folds] = {}
        for folds in self.members:
            found.setdefault(_partition(folds), folds)
        return list(found.values())

    @property
    def member_seeds(self) -> list[int]:
        """Seed of every member: each fold of each repetition is one."""
        return [seed for seed, folds in zip(self.seeds, self.members, strict=True) for _ in range(folds.count)]


@dataclass(frozen=True)
class Probed:
    """What all probes said of clips they did not train on.

    shuffled (S, N): labels of the control. mlp (S, L, N): classes guessed. weights (M, L) and weighed (S, N): learned
    layer weights of M members, and their guess. groups (N,): speakers.
    """

    linear: ProbePredictions
    shuffled: np.ndarray
    mlp: np.ndarray | None
    weights: np.ndarray
    weighed: np.ndarray
    speakers: SpeakerReadout | None
    groups: np.ndarray | None


def _partition(folds: Folds) -> tuple[int, ...]:
    """Which clips stand together, whatever their folds are called."""
    names = {fold: number for number, fold in enumerate(dict.fromkeys(folds.fold_of.tolist()))}
    return tuple(names[fold] for fold in folds.fold_of.tolist())


def probe_all(values: np.ndarray, examples: LabelledClips, plan: Plan, progress: Progress) -> Probed:
    """Fit everything on values (N, L, D)."""
    labels, groups, seed = examples.labels, speaker_groups(examples), plan.seeds[0]
    shares = _shares(values.shape, plan, groups is not None, progress)
    random = np.random.default_rng(seed)
    shuffled = np.stack([random.permutation(labels) for _ in plan.shuffles])
    linear = probe_linear(values, labels, shuffled, plan.shuffles, plan.classes, plan.estimator, plan.device, shares[0])
    mlp = _guess_mlp(values, labels, plan, shares[1]) if plan.mlp else None
    weights, weighed = _weigh_layers(values, labels, plan, shares[2])
    speakers = None
    if groups is not None:
        speakers = probe_speakers(values, groups, plan.members[0].count, seed, plan.device, shares[3])
    return Probed(linear, shuffled, mlp, weights, weighed, speakers, groups)


def _shares(shape: tuple[int, ...], plan: Plan, speakers: bool, progress: Progress) -> list[Progress]:
    """Progress in per cent of all work, for linear probes, perceptrons, layer weights and speakers, by rough cost."""
    clips, layers, channels = shape
    folds, members = plan.members[0].count, len(plan.member_seeds)
    fits = 4 * folds * len(plan.shuffles)
    mlp, weights = MlpSchedule(), WeightSchedule()
    costs = [
        layers * fits * (60 * 4 * clips * channels * plan.classes if plan.estimator == "logistic" else 9 * channels**3),
        layers * mlp.steps_for(clips) * mlp.batch * channels * mlp.hidden * members * 8 * plan.mlp,
        layers * weights.steps_for(clips) * weights.batch * channels * members * plan.classes * 8,
        layers * (2 * clips * channels**2 + folds * channels**3) * speakers,
    ]
    ends = [0.0, *np.cumsum(costs) / sum(costs)]

    def share(begin: float, end: float) -> Progress:
        return lambda done, total: progress(int(100 * (begin + (end - begin) * done / total)), 100)

    return [share(begin, end) for begin, end in pairwise(ends)]


def _guess_mlp(values: np.ndarray, labels: np.ndarray, plan: Plan, progress: Progress) -> np.ndarray:
    """Class (S, L, N) of each clip by the perceptrons, layers in groups that fit the memory."""
    clips, layers, channels = values.shape
    trains, schedule, seeds = _train_masks(plan), MlpSchedule(), plan.member_seeds
    numbers = len(seeds) * schedule.hidden * (6 * channels + clips + 6 * schedule.batch) + 3 * clips * channels
    chunks = layer_chunks(layers, numbers, plan.device)
    known, guess = torch.as_tensor(labels, device=plan.device), []
    for number, chunk in enumerate(chunks):
        features = torch.as_tensor(values[:, chunk], device=plan.device).transpose(0, 1).contiguous()
        share = within(progress, number, len(chunks))
        guess.append(_held_out(train_mlp(features, known, trains, plan.classes, seeds, schedule, share), plan))
    return np.concatenate(guess).swapaxes(0, 1)


def _weigh_layers(
    values: np.ndarray, labels: np.ndarray, plan: Plan, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Learned weights (M, L) and guessed classes (S, N)."""
    features, known = (torch.as_tensor(given, device=plan.device) for given in (values, labels))
    trains, seeds, schedule = _train_masks(plan), plan.member_seeds, WeightSchedule()
    weights, logits = train_layer_weights(features, known, trains, plan.classes, seeds, schedule, progress)
    return weights.cpu().numpy(), _held_out(logits, plan)


def _train_masks(plan: Plan) -> torch.Tensor:
    """(M, N) of 1 where a clip trains a member."""
    rows = [torch.as_tensor(folds.fold_of != fold) for folds in plan.members for fold in range(folds.count)]
    return torch.stack(rows).float().to(plan.device)


def _held_out(logits: torch.Tensor, plan: Plan) -> np.ndarray:
    """Class (..., S, N) of each clip by the member of its fold, from logits (..., M, C, N)."""
    first, guess = 0, []
    for folds in plan.members:
        rows = torch.arange(len(folds.fold_of), device=logits.device)
        of = torch.as_tensor(folds.fold_of, device=logits.device) + first
        guess.append(logits.argmax(-2)[..., of, rows])
        first += folds.count
    return torch.stack(guess, -2).cpu().numpy()

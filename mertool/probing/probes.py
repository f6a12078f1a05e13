"""All probes of all layers under the same folds: linear, perceptrons, learned layer weights, speakers.

Shapes: R repetitions, S of them with different folds, M members (one for each fold of each repetition), L layers,
N clips, D channels.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mertool.learning.folds import Folds, speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.probing.layer_weights import LayerWeightsConfig, train_layer_weights
from mertool.probing.mlp import MlpConfig, train_mlp
from mertool.probing.nested_cv import layer_chunks, probe_linear
from mertool.probing.prediction_table import ProbePredictions
from mertool.probing.progress import ProgressSpan
from mertool.probing.speakers import SpeakerPredictions, probe_speakers
from mertool.targets import Target


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """The probes to fit on every layer.

    Attributes:
        repetitions: The folds of each repetition; all the same if the folds were given.
        seeds: Seed of each repetition.
        target: The kind of the labels.
        estimator: Linear probe, `logistic` or `ridge`; of a number `ridge`.
        mlp: Whether to train perceptrons, too.
        device: Device to fit on.
    """

    repetitions: list[Folds]
    seeds: list[int]
    target: Target
    estimator: str
    mlp: bool
    device: torch.device

    @property
    def partitions(self) -> list[Folds]:
        """The repetitions that differ: few speakers can be divided into folds in few ways, or in one only.

        Linear probes are deterministic, so that fitting equal folds again would give nothing new.
        """
        distinct: dict[tuple[int, ...], Folds] = {}
        for folds in self.repetitions:
            distinct.setdefault(_canonical_partition(folds), folds)
        return list(distinct.values())

    @property
    def member_seeds(self) -> list[int]:
        """Seed (M,) of every member."""
        return [seed for seed, folds in zip(self.seeds, self.repetitions, strict=True) for _ in range(folds.count)]


@dataclass(frozen=True, kw_only=True)
class ProbeResults:
    """Predictions of all probes for clips that they were not trained on.

    Attributes:
        linear: Linear probes.
        control_labels: Permuted labels (S, N) that the control probes were trained on.
        mlp: Classes or numbers (R, L, N) by the perceptrons, None without them.
        layer_weights: Learned layer weights (M, L).
        layer_weights_predicted: Classes or numbers (R, N) by the models with learned layer weights.
        speakers: Speaker probes, None where speakers are not known.
        groups: Speaker of each clip (N,), None where not all are known.
    """

    linear: ProbePredictions
    control_labels: np.ndarray
    mlp: np.ndarray | None
    layer_weights: np.ndarray
    layer_weights_predicted: np.ndarray
    speakers: SpeakerPredictions | None
    groups: np.ndarray | None


def probe_all(values: np.ndarray, examples: LabelledClips, plan: ProbePlan, *, progress: ProgressSpan) -> ProbeResults:
    """Fit all probes of a plan on features (N, L, D)."""
    labels, groups, seed = examples.labels, speaker_groups(examples), plan.seeds[0]
    linear_span, mlp_span, weights_span, speakers_span = progress.split(
        _estimate_costs(values.shape, plan, with_speakers=groups is not None)
    )
    rng = np.random.default_rng(seed)
    control_labels = np.stack([rng.permutation(labels) for _ in plan.partitions])
    linear = probe_linear(
        values,
        labels,
        control_labels,
        partitions=plan.partitions,
        target=plan.target,
        estimator=plan.estimator,
        device=plan.device,
        progress=linear_span,
    )
    mlp = _predict_by_mlp(values, labels, plan, progress=mlp_span) if plan.mlp else None
    layer_weights, layer_weights_predicted = _learn_layer_weights(values, labels, plan, progress=weights_span)
    speakers = None
    if groups is not None:
        n_folds = plan.repetitions[0].count
        speakers = probe_speakers(
            values, groups, n_folds=n_folds, seed=seed, device=plan.device, progress=speakers_span
        )
    return ProbeResults(
        linear=linear,
        control_labels=control_labels,
        mlp=mlp,
        layer_weights=layer_weights,
        layer_weights_predicted=layer_weights_predicted,
        speakers=speakers,
        groups=groups,
    )


def _canonical_partition(folds: Folds) -> tuple[int, ...]:
    """Return the fold of each clip with the folds renumbered in order of appearance."""
    fold_of = folds.fold_of.tolist()
    numbers = {fold: number for number, fold in enumerate(dict.fromkeys(fold_of))}
    return tuple(numbers[fold] for fold in fold_of)


def _estimate_costs(shape: tuple[int, ...], plan: ProbePlan, *, with_speakers: bool) -> list[float]:
    """Return rough costs (multiplications) of linear probes, perceptrons, layer weights and speaker probes."""
    n_clips, n_layers, n_channels = shape
    n_folds, n_members = plan.repetitions[0].count, len(plan.member_seeds)
    n_fits = 4 * n_folds * len(plan.partitions)
    mlp, weights = MlpConfig(), LayerWeightsConfig()
    mlp_clips = mlp.count_steps(n_clips) * mlp.batch_size
    weights_clips = weights.count_steps(n_clips) * weights.batch_size
    logistic, ridge = 60 * 4 * n_clips * n_channels * plan.target.n_outputs, 9 * n_channels**3
    return [
        n_layers * n_fits * (logistic if plan.estimator == "logistic" else ridge),
        n_layers * mlp_clips * n_channels * mlp.hidden * n_members * 8 * plan.mlp,
        n_layers * weights_clips * n_channels * n_members * plan.target.n_outputs * 8,
        n_layers * (2 * n_clips * n_channels**2 + n_folds * n_channels**3) * with_speakers,
    ]


def _predict_by_mlp(values: np.ndarray, labels: np.ndarray, plan: ProbePlan, *, progress: ProgressSpan) -> np.ndarray:
    """Return the class or number (R, L, N) of each clip by perceptrons, in groups of layers that fit the memory."""
    n_clips, n_layers, n_channels = values.shape
    config, seeds = MlpConfig(), plan.member_seeds
    floats_per_member = config.hidden * (6 * n_channels + n_clips + 6 * config.batch_size)
    chunks = layer_chunks(n_layers, len(seeds) * floats_per_member + 3 * n_clips * n_channels, plan.device)
    predicted = []
    for layers, span in zip(chunks, progress.split([1] * len(chunks)), strict=True):
        logits = train_mlp(
            torch.as_tensor(values[:, layers], device=plan.device).transpose(0, 1).contiguous(),
            torch.as_tensor(labels, device=plan.device),
            _train_masks(plan),
            n_outputs=plan.target.n_outputs,
            seeds=seeds,
            config=config,
            progress=span,
        )
        predicted.append(_held_out_predictions(logits, plan))
    return np.concatenate(predicted).swapaxes(0, 1)


def _learn_layer_weights(
    values: np.ndarray, labels: np.ndarray, plan: ProbePlan, *, progress: ProgressSpan
) -> tuple[np.ndarray, np.ndarray]:
    """Return learned layer weights (M, L) and predicted classes or numbers (R, N)."""
    weights, logits = train_layer_weights(
        torch.as_tensor(values, device=plan.device),
        torch.as_tensor(labels, device=plan.device),
        _train_masks(plan),
        n_outputs=plan.target.n_outputs,
        seeds=plan.member_seeds,
        config=LayerWeightsConfig(),
        progress=progress,
    )
    return weights.cpu().numpy(), _held_out_predictions(logits, plan)


def _train_masks(plan: ProbePlan) -> torch.Tensor:
    """Return (M, N), 1 where a clip is in the training set of a member."""
    masks = [torch.as_tensor(folds.fold_of != fold) for folds in plan.repetitions for fold in range(folds.count)]
    return torch.stack(masks).float().to(plan.device)


def _held_out_predictions(outputs: torch.Tensor, plan: ProbePlan) -> np.ndarray:
    """Return the class or number (..., R, N) of each clip by the member that held it out; outputs (..., M, C, N)."""
    decided, rows = plan.target.decide(outputs.mT.cpu().numpy()), np.arange(outputs.shape[-1])
    first_member, predicted = 0, []
    for folds in plan.repetitions:
        predicted.append(decided[..., first_member + folds.fold_of, rows])
        first_member += folds.count
    return np.stack(predicted, -2)

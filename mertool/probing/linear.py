"""Linear probes whose penalty is chosen inside their training clips: the frozen baselines of `finetune` and `align`.

As in `probe-layers`, the penalty is the one of least cross-entropy under cross-validation inside the training clips.
The folds of that cross-validation are given, so that they keep speakers apart where the outer ones do.

Shapes: B layers, N clips, D channels, C classes, S training sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mertool.probing.lbfgs import MEMORY
from mertool.probing.logistic import BatchedLogisticRegression
from mertool.probing.nested_cv import PENALTIES, TWO_FOLD_PENALTY, layer_chunks
from mertool.probing.standardize import StandardizedFeatures


@dataclass(frozen=True, kw_only=True)
class ProbeTrainingSet:
    """The clips that a probe is fitted on.

    Attributes:
        rows: Their rows (n,).
        inner_folds: Fold (n,) of each in the cross-validation that chooses the penalty. With a single fold nothing is
            left to choose on, and the penalty is fixed.
    """

    rows: np.ndarray
    inner_folds: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Probes:
    """S linear probes of each of B layers, on features standardised by the training clips of each probe.

    Attributes:
        mean: Mean of the training clips (B, S, D).
        scale: Inverse standard deviation of the training clips (B, S, D).
        weight: (B, S, D, C).
        bias: (B, S, C).
        inverse_penalty: scikit-learn's C (B, S).
    """

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    inverse_penalty: torch.Tensor

    def logits(self, features: torch.Tensor, training_set: int) -> torch.Tensor:
        """Return the logits (B, N, C) of features (B, N, D) by the probes of one training set."""
        centred = features - self.mean[:, training_set, None]
        scaled = centred * self.scale[:, training_set, None]
        return scaled @ self.weight[:, training_set] + self.bias[:, training_set, None]


def fit_probes(
    features: torch.Tensor,
    labels: torch.Tensor,
    training_sets: Sequence[ProbeTrainingSet],
    *,
    n_classes: int,
    inverse_penalty: torch.Tensor | None = None,
) -> Probes:
    """Fit a probe of each layer of features (B, N, D) on each training set, with labels (N,).

    `inverse_penalty` (B, S) are penalties that were chosen before, on other features of the same clips.
    """
    n_layers, n_clips, n_channels = features.shape
    fits = _InnerFits.of(training_sets, labels.cpu().numpy(), choose=inverse_penalty is None)
    columns = len(fits.masks) * n_classes
    floats_per_layer = n_clips * (3 * n_channels + 6 * columns) + n_channels * (2 * n_channels + 4 * MEMORY * columns)
    chunks = layer_chunks(n_layers, floats_per_layer, features.device)
    parts = []
    for layers in chunks:
        given = None if inverse_penalty is None else inverse_penalty[layers]
        parts.append(_fit_layers(features[layers], labels, fits, n_classes=n_classes, inverse_penalty=given))
    return Probes(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def cross_validate(
    values: np.ndarray, labels: np.ndarray, fold_of: np.ndarray, *, n_classes: int, device: torch.device
) -> np.ndarray:
    """Return the logits (N, C) of each clip by the probe that held out its fold, for features (N, D).

    The penalty of each probe is chosen by cross-validation over the other folds.
    """
    features = torch.as_tensor(values, dtype=torch.float32, device=device)[None]
    folds = range(int(fold_of.max()) + 1)
    rows = [np.flatnonzero(fold_of != fold) for fold in folds]
    training_sets = [ProbeTrainingSet(rows=train, inner_folds=fold_of[train]) for train in rows]
    probes = fit_probes(features, torch.as_tensor(labels, device=device), training_sets, n_classes=n_classes)
    logits = np.zeros((len(labels), n_classes), np.float32)
    for fold in folds:
        held_out = np.flatnonzero(fold_of == fold)
        logits[held_out] = probes.logits(features[:, held_out], fold)[0].cpu().numpy()
    return logits


@dataclass(frozen=True, kw_only=True)
class _InnerFits:
    """All fits that S training sets need: those on the whole sets, and those that choose their penalties.

    A fit that two training sets need, such as that without folds 1 and 2 for the choices of both, is made once.

    Attributes:
        masks: Training clips (K, N) of each fit; the first S are the training sets.
        scored: For each training set, the inner fits (their index in `masks`) and the rows that each is scored on.
            Empty where the penalty is fixed.
    """

    masks: np.ndarray
    scored: list[list[tuple[int, np.ndarray]]]

    @classmethod
    def of(cls, training_sets: Sequence[ProbeTrainingSet], labels: np.ndarray, *, choose: bool) -> "_InnerFits":
        """Return the fits of training sets of clips with labels (N,); those for the choice of penalties if `choose`."""
        masks = [np.isin(np.arange(len(labels)), training_set.rows) for training_set in training_sets]
        index_of: dict[bytes, int] = {}
        scored = []
        for training_set, outer in zip(training_sets, list(masks), strict=True):
            inner = []
            for fold in np.unique(training_set.inner_folds) if choose else ():
                held_out = training_set.rows[training_set.inner_folds == fold]
                mask = outer.copy()
                mask[held_out] = False
                if len(np.unique(labels[mask])) < 2:  # a single fold, or one that has nearly all clips of the others
                    continue
                number = index_of.setdefault(mask.tobytes(), len(masks))
                if number == len(masks):
                    masks.append(mask)
                inner.append((number, held_out))
            scored.append(inner)
        return cls(masks=np.stack(masks), scored=scored)


def _fit_layers(
    features: torch.Tensor,
    labels: torch.Tensor,
    fits: _InnerFits,
    *,
    n_classes: int,
    inverse_penalty: torch.Tensor | None,
) -> Probes:
    """Make all fits under every penalty at once, and return the probes under the given or the best penalty."""
    masks = torch.as_tensor(fits.masks, dtype=features.dtype, device=features.device)
    all_labels = labels.expand(len(masks), -1)
    solver = BatchedLogisticRegression.from_features(features, all_labels, masks, n_classes=n_classes)
    penalties = torch.tensor(PENALTIES["logistic"], device=features.device)
    best, n_penalties = None, len(penalties)
    if inverse_penalty is not None:
        best = (inverse_penalty[..., None] == penalties).int().argmax(-1)
        n_penalties = int(best.max()) + 1
    weights, by_penalty, losses = None, [], []
    for penalty in PENALTIES["logistic"][:n_penalties]:
        # Each penalty starts from the weights of the one before, which takes fewer steps.
        weights = solver.solve(penalty, weights).weights
        by_penalty.append(weights[:, : len(fits.scored)])
        losses.append(_inner_losses(solver, weights, fits))
    if best is None:
        best = torch.stack(losses).argmin(0)  # (B, S); of equal losses the stronger penalty
        best[:, [not inner for inner in fits.scored]] = PENALTIES["logistic"].index(TWO_FOLD_PENALTY["logistic"])
    layer, training_set = (torch.arange(size, device=best.device) for size in best.shape)
    chosen = torch.stack(by_penalty)[best, layer[:, None], training_set]
    return _as_probes(solver.scaled, chosen, penalties[best])


def _inner_losses(solver: BatchedLogisticRegression, weights: torch.Tensor, fits: _InnerFits) -> torch.Tensor:
    """Return the summed cross-entropy (B, S) of the clips that the inner fits of each training set left out."""
    losses = weights.new_zeros(len(weights), len(fits.scored))
    if not any(fits.scored):
        return losses
    logits = solver.logits(weights)
    for number, inner in enumerate(fits.scored):
        for fit, held_out in inner:
            rows = torch.as_tensor(held_out, device=logits.device)
            truth = solver.labels[fit, rows].expand(len(weights), -1)
            entropy = torch.nn.functional.cross_entropy(logits[:, fit][..., rows], truth, reduction="none")
            losses[:, number] += entropy.sum(1)
    return losses


def _as_probes(scaled: StandardizedFeatures, weights: torch.Tensor, inverse_penalty: torch.Tensor) -> Probes:
    """Return the probes with weights (B, S, C, D + 1) of standardised features."""
    n_sets, bias = weights.shape[1], weights[..., -1]
    return Probes(
        mean=scaled.median[:, None] + scaled.mad[:, None] * scaled.mean[:, :n_sets],
        scale=scaled.inv_std[:, :n_sets] / scaled.mad[:, None],
        weight=weights[..., :-1].mT.contiguous(),
        # Adding a number to all biases changes no probability, and which number the optimiser ends with is arbitrary.
        bias=bias - bias.mean(-1, keepdim=True),
        inverse_penalty=inverse_penalty,
    )

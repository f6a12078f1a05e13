"""Linear probes of frozen and of adapted features, fitted on the training clips of each adapter."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mertool.adapters.cross_validation import AdapterSplit
from mertool.adapters.model import side_by_side
from mertool.adapters.setup import AdapterSetup
from mertool.probing.linear import Probes, ProbeTrainingSet, fit_probes


@dataclass(frozen=True, kw_only=True)
class FrozenProbes:
    """Linear probes of the frozen features for every fold, and the penalties that probes of adapted features take.

    A penalty is chosen by cross-validation over the other folds, as in `probe-layers`. Only frozen features can choose
    it: an adapter has seen the labels of all its training clips, so cross-validation among these would choose too weak
    a penalty for its features.

    Attributes:
        setup: Frozen features and labels.
        training_sets: Training clips of each fold, by the name of its adapter.
        layers: Probes of each of the W blocks, for all training sets.
        window: Probes of all blocks side by side, for all training sets.
    """

    setup: AdapterSetup
    training_sets: dict[str, ProbeTrainingSet]
    layers: Probes
    window: Probes

    @classmethod
    def fit(cls, setup: AdapterSetup, splits: Sequence[AdapterSplit]) -> "FrozenProbes":
        """Fit the probes for all splits that hold out clips; these clips are the folds that choose the penalties."""
        scored = [split for split in splits if len(split.held_out)]
        fold_of = np.full(len(setup.labelled_rows), -1)
        for number, split in enumerate(scored):
            fold_of[split.held_out] = number
        sets = [ProbeTrainingSet(rows=split.train, inner_folds=fold_of[split.train]) for split in scored]
        return cls(
            setup=setup,
            training_sets={split.name: training_set for split, training_set in zip(scored, sets, strict=True)},
            layers=_fit(setup, setup.frozen_features, sets),
            window=_fit(setup, setup.window_features[None], sets),
        )

    def layer_logits(self, split: AdapterSplit, adapted: torch.Tensor) -> list[np.ndarray]:
        """Return the logits (W, H, C) of the held-out clips by probes of frozen and of adapted features (W, n, D)."""
        return self._logits(self.layers, split, frozen=self.setup.frozen_features, adapted=adapted)

    def window_logits(self, split: AdapterSplit, adapted: torch.Tensor) -> list[np.ndarray]:
        """Return the same (H, C) by probes of all blocks side by side."""
        frozen = self.setup.window_features[None]
        return [
            each[0] for each in self._logits(self.window, split, frozen=frozen, adapted=side_by_side(adapted)[None])
        ]

    def _logits(
        self, probes: Probes, split: AdapterSplit, *, frozen: torch.Tensor, adapted: torch.Tensor
    ) -> list[np.ndarray]:
        if not len(split.held_out):
            return [np.zeros((len(frozen), 0, self.setup.n_classes), np.float32)] * 2
        number = list(self.training_sets).index(split.name)
        adapted_probes = _fit(
            self.setup,
            adapted,
            [self.training_sets[split.name]],
            inverse_penalty=probes.inverse_penalty[:, number : number + 1],
        )
        logits = probes.logits(frozen[:, split.held_out], number), adapted_probes.logits(adapted[:, split.held_out], 0)
        return [each.cpu().numpy() for each in logits]


def _fit(
    setup: AdapterSetup,
    features: torch.Tensor,
    training_sets: Sequence[ProbeTrainingSet],
    *,
    inverse_penalty: torch.Tensor | None = None,
) -> Probes:
    """Fit linear probes of features (B, n, D) of the labelled clips."""
    labels = torch.as_tensor(setup.labels[setup.labelled_rows], device=features.device)
    return fit_probes(features, labels, training_sets, n_classes=setup.n_classes, inverse_penalty=inverse_penalty)

"""The records that fusion trains on and scores: features of each modality, and clips with labels and folds."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from mertool.fusion.heads import Shapes
from mertool.learning.folds import Folds
from mertool.learning.labelled_clips import IGNORE_INDEX, LabelledClips


@dataclass(frozen=True)
class ModalityFeatures:
    """Features of N clips in P modalities (one per store), all on one device.

    Attributes:
        values: One tensor (N, L, D) per modality: L layers or spans of D channels. The values of a clip without the
            modality are of no importance.
        present: (N, P), true where the clip has the modality.
    """

    values: list[torch.Tensor]
    present: torch.Tensor

    def __len__(self) -> int:
        return len(self.present)

    @property
    def shapes(self) -> Shapes:
        """(L, D) of each modality."""
        return [(int(values.shape[1]), int(values.shape[2])) for values in self.values]

    @property
    def device(self) -> torch.device:
        return self.present.device

    def has_any(self) -> np.ndarray:
        """Return (N,), true where a clip has at least one modality."""
        return self.present.any(1).cpu().numpy()

    def modality(self, index: int) -> "ModalityFeatures":
        """Return the features of one modality only."""
        return ModalityFeatures([self.values[index]], self.present[:, index : index + 1])

    def rows(self, rows: torch.Tensor | slice) -> "ModalityFeatures":
        """Return the features of some clips; for rows (M, B) values are (M, B, L, D) and present (M, B, P)."""
        if isinstance(rows, slice):
            return ModalityFeatures([values[rows] for values in self.values], self.present[rows])
        # On a CPU several times faster than values[rows].
        flat = rows.flatten()
        values = [values.index_select(0, flat).unflatten(0, rows.shape) for values in self.values]
        return ModalityFeatures(values, self.present.index_select(0, flat).unflatten(0, rows.shape))

    def expand(self, members: int) -> "ModalityFeatures":
        """Return views with a first axis of length `members`: the same clips for each member of a stack."""
        values = [values.expand(members, *values.shape) for values in self.values]
        return ModalityFeatures(values, self.present.expand(members, *self.present.shape))


@dataclass(frozen=True)
class FusionData:
    """Clips with their features, labels and folds.

    Attributes:
        features: Features of the N labelled clips, then of U unlabelled ones.
        labelled: Labels and speakers of the N clips.
        folds: Fold of each of the N clips.
        pseudo_labels: Labels (F, U) of the unlabelled clips for each fold, IGNORE_INDEX where the fold does not train
            on the clip; None for none.
    """

    features: ModalityFeatures
    labelled: LabelledClips
    folds: Folds
    pseudo_labels: np.ndarray | None = None

    def modality(self, index: int) -> "FusionData":
        """Return the same clips with the features of one modality only."""
        return replace(self, features=self.features.modality(index))

    def can_score(self) -> np.ndarray:
        """Return (N,), true where a labelled clip has some modality."""
        return self.features.has_any()[: len(self.labelled)]

    def held_out(self, fold: int) -> np.ndarray:
        """Return the rows of a fold's labelled clips that have some modality."""
        rows = self.folds.held_out(fold)
        return rows[self.can_score()[rows]]

    def labels_of(self, fold: int) -> np.ndarray:
        """Return the labels (N + U) that the members of a fold may know; its held-out clips are still among them.

        See `is_labelled` for clips without one.
        """
        numbers = self.labelled.labels.dtype.kind == "f"
        fill, dtype = (np.nan, np.float32) if numbers else (IGNORE_INDEX, np.int64)
        labels = np.full(len(self.features), fill, dtype)
        labels[: len(self.labelled)] = self.labelled.labels
        if self.pseudo_labels is not None:
            labels[len(self.labelled) :] = self.pseudo_labels[fold]
        return labels

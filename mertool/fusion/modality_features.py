"""The record of features that fusion trains on and scores: values of each modality, and which clips have it."""

from dataclasses import dataclass

import numpy as np
import torch

from mertool.fusion.heads import Shapes


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

"""The labelled clips that a stage learns from."""

from dataclasses import dataclass

import numpy as np

from mertool.errors import MertoolError
from mertool.manifest import Manifest
from mertool.store import FeatureStore
from mertool.targets import Target

N_STRATA = 5  # groups of clips by size, where folds are stratified by a number
IGNORE_INDEX = -100  # label of a clip that is not learned from: the default `ignore_index` of torch's cross-entropy


def is_labelled(labels: np.ndarray) -> np.ndarray:
    """Return where clips have a label: a class index, else IGNORE_INDEX, or a number, else NaN."""
    return np.isfinite(labels) if labels.dtype.kind == "f" else labels != IGNORE_INDEX


@dataclass(frozen=True)
class LabelledClips:
    """N clips with a label, sorted by clip id.

    Folds, permuted labels, batches and random exchanges of predictions are drawn for rows. As rows are sorted, they do
    not depend on the order of the manifest.

    Attributes:
        clips: Clip ids.
        labels: Class indices, or numbers, (N,).
        speakers: Speaker of each clip, None where unknown.
    """

    clips: tuple[str, ...]
    labels: np.ndarray
    speakers: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.clips)

    @classmethod
    def from_manifest(cls, manifest: Manifest, target: Target) -> "LabelledClips":
        """Return the training clips of a manifest that have a label of the target.

        Raises MertoolError if there is none, or if all have the same.
        """
        labels, speakers = dict(sorted(target.training_labels(manifest).items())), manifest.speakers()
        if not labels:
            column = "label" if target.classes else target.name
            raise MertoolError(
                f"{manifest.source} has no labelled training clip: fill in the column {column} (split empty or train), "
                "or build it with `mertool manifest --labels`"
            )
        different = set(labels.values())
        if len(different) < 2:
            label = different.pop()
            same = f"are '{target.classes[label]}'" if target.classes else f"have the {target.name} {label:g}"
            needed = "two classes or more" if target.classes else "different numbers"
            raise MertoolError(f"all {len(labels)} labelled clips of {manifest.source} {same}: {needed} are needed")
        return cls(tuple(labels), np.array(list(labels.values())), tuple(speakers.get(clip) for clip in labels))

    @property
    def strata(self) -> np.ndarray:
        """Strata of the clips (N,) for folds: the class, or the fifth of the clips that a number is in."""
        if self.labels.dtype.kind != "f":
            return self.labels
        ends = np.quantile(self.labels, np.arange(1, N_STRATA) / N_STRATA)
        return np.unique(np.searchsorted(ends, self.labels), return_inverse=True)[1]

    def select(self, mask: np.ndarray) -> "LabelledClips":
        """Return the clips where `mask` (N,) is true."""
        rows = np.flatnonzero(mask)
        return LabelledClips(
            tuple(self.clips[row] for row in rows),
            self.labels[rows],
            tuple(self.speakers[row] for row in rows),
        )

    def present_in(self, store: FeatureStore) -> np.ndarray:
        """Return a mask (N,) of the clips that the store has features of.

        A clip without features must be in the store's table of failures. One that was never extracted raises
        MertoolError, because leaving it out would change the data silently.
        """
        failed = {failure.clip for failure in store.failures()}
        unknown = [clip for clip in self.clips if clip not in store.index and clip not in failed]
        if unknown:
            number = "none" if len(unknown) == len(self) else f"{len(unknown)} not"
            raise MertoolError(
                f"of {len(self)} labelled clips {number} in {store.path} (first missing: {unknown[0]}): is it the "
                "store of this manifest? Extract them first"
            )
        present = np.array([clip in store.index for clip in self.clips])
        if not present.any():
            raise MertoolError(f"{store.path} has features of none of the {len(self)} labelled clips, only failures")
        return present

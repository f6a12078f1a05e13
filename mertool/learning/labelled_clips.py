"""The labelled clips that a stage learns from."""

from dataclasses import dataclass

import numpy as np

from mertool.errors import MertoolError
from mertool.manifest import Manifest
from mertool.store import FeatureStore

IGNORE_INDEX = -100  # label of a clip that is not learned from: the default `ignore_index` of torch's cross-entropy


@dataclass(frozen=True)
class LabelledClips:
    """N clips with a label, sorted by clip id.

    Folds, permuted labels, batches and random exchanges of predictions are drawn for rows. As rows are sorted, they do
    not depend on the order of the manifest.

    Attributes:
        clips: Clip ids.
        labels: Class indices (N,).
        speakers: Speaker of each clip, None where unknown.
    """

    clips: tuple[str, ...]
    labels: np.ndarray
    speakers: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.clips)

    @classmethod
    def from_manifest(cls, manifest: Manifest, classes: tuple[str, ...]) -> "LabelledClips":
        """Return the labelled training clips of a manifest.

        Raises MertoolError if there is none, or if all are of one class.
        """
        labels, speakers = dict(sorted(manifest.training_labels(classes).items())), manifest.speakers()
        if not labels:
            raise MertoolError(
                f"{manifest.source} has no labelled training clip: fill in the column label (split empty or train), or "
                "build it with `mertool manifest --labels`"
            )
        names = set(labels.values())
        if len(names) < 2:
            raise MertoolError(
                f"all {len(labels)} labelled clips of {manifest.source} are '{names.pop()}': two classes or more are "
                "needed"
            )
        indices = np.array([classes.index(label) for label in labels.values()])
        return cls(tuple(labels), indices, tuple(speakers.get(clip) for clip in labels))

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

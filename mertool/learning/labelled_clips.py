"""Which clips a stage learns from: those with a label and with features, and nothing silently left out."""

from dataclasses import dataclass

import numpy as np

from mertool.errors import MertoolError
from mertool.manifest import Manifest
from mertool.store import FeatureStore


@dataclass(frozen=True)
class LabelledClips:
    """Labelled clips in manifest order: class index (N,) and speaker of each (None where unknown)."""

    clips: tuple[str, ...]
    labels: np.ndarray
    speakers: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.clips)


def labelled_examples(manifest: Manifest, classes: tuple[str, ...]) -> LabelledClips:
    """The training clips of a manifest. At least two classes must occur."""
    labels, speakers = manifest.training_labels(classes), manifest.speakers()
    if not labels:
        raise MertoolError(
            f"{manifest.source} has no labelled training clip: fill in the column label (split empty or train), or "
            "build it with `mertool manifest --labels`"
        )
    found = sorted(set(labels.values()))
    if len(found) < 2:
        raise MertoolError(
            f"all {len(labels)} labelled clips of {manifest.source} are '{found[0]}': two classes or more are needed"
        )
    clips = tuple(labels)
    index = np.array([classes.index(labels[clip]) for clip in clips])
    return LabelledClips(clips, index, tuple(speakers.get(clip) for clip in clips))


def keep(examples: LabelledClips, chosen: np.ndarray) -> LabelledClips:
    """The examples where `chosen` (N,) is true."""
    rows = np.flatnonzero(chosen)
    return LabelledClips(
        tuple(examples.clips[row] for row in rows),
        examples.labels[rows],
        tuple(examples.speakers[row] for row in rows),
    )


def present_in(store: FeatureStore, examples: LabelledClips) -> np.ndarray:
    """(N,) true where the store has features of a clip.

    A clip without features must be in the store's table of failures: one that was never extracted is an
    error, since leaving it out would change the data silently.
    """
    excused = {failure.clip for failure in store.failures()}
    absent = [clip for clip in examples.clips if clip not in store.index]
    unknown = [clip for clip in absent if clip not in excused]
    if unknown:
        none = "none" if len(unknown) == len(examples) else f"{len(unknown)} not"
        raise MertoolError(
            f"of {len(examples)} labelled clips {none} in {store.path} (first missing: {unknown[0]}): is it the store "
            "of this manifest? Extract them first"
        )
    present = np.array([clip in store.index for clip in examples.clips])
    if not present.any():
        raise MertoolError(f"{store.path} has features of none of the {len(examples)} labelled clips, only failures")
    return present

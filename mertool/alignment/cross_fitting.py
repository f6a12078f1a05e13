"""Which clips train which aligner, so that no labelled clip is encoded by an aligner that was trained on it.

An aligner memorises the audio of the clips it is trained on. For such a clip its vector shows what the audio says, and
not what the face shows, so scores of such clips are far too high. There are two ways around this:

- Labelled clips train nothing where at least as many other clips are left, as in the MER challenges.
- Otherwise aligners are cross-fitted: one for each fold of the labelled clips, which is trained on all clips but those
  of the fold, and a final one for clips without a label and for new ones. All share the acoustic targets, so their
  vectors are comparable.
"""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mertool.alignment.targets import MIN_CLIPS, AlignmentSplit, split_clips
from mertool.encoders.aligner import FINAL
from mertool.errors import MertoolWarning, count_of
from mertool.learning.folds import Folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.runs import Run
from mertool.store import FeatureStore


@dataclass(frozen=True, kw_only=True)
class AlignmentPlan:
    """The split of the clips for each aligner.

    Attributes:
        splits: By the name of the aligner; the last one is `final`.
        aligner_of_clip: The name of the aligner of each labelled clip; empty if `final` is not trained on them.
    """

    splits: dict[str, AlignmentSplit]
    aligner_of_clip: dict[str, str] = field(default_factory=dict)

    @property
    def final(self) -> AlignmentSplit:
        """The split of the aligner for clips without a label and for new ones."""
        return self.splits[FINAL]


def warn_of_trained_clips(stores: Sequence[FeatureStore], examples: LabelledClips) -> None:
    """Warn of labelled clips that may have trained the aligner which made their features."""
    for store in stores:
        if not store.recipe.aligner:
            continue
        run = Run.read(Path(str(store.provenance["aligner"])), "align", "aligner_of_clip", "held_out_clips")
        unseen = {*run.info["aligner_of_clip"], *run.info["held_out_clips"]}
        count = sum(clip in store.index and clip not in unseen for clip in examples.clips)
        if count:
            warnings.warn(
                f"{store.path}: the aligner was trained on {count_of(count, 'labelled clip')}, whose scores are "
                f"therefore too high: give --manifest to `mertool align` and make {run.folder} again",
                MertoolWarning,
                stacklevel=2,
            )


def plan_alignment(
    clips: list[str],
    labelled: tuple[LabelledClips, Folds] | None,
    *,
    test_clips: Collection[str] = (),
    seed: int,
) -> AlignmentPlan:
    """Plan the aligners of `clips`, which are sorted ids; `labelled` has the labelled ones and their folds, if any.

    `test_clips` train nothing, because the features of a test clip must be made as those of any new clip.
    """
    is_usable = ~np.isin(clips, list(test_clips))
    if labelled is None:
        return AlignmentPlan(splits={FINAL: split_clips(np.flatnonzero(is_usable), seed)})
    examples, folds = labelled
    fold_of_clip = dict(zip(examples.clips, folds.fold_of.tolist(), strict=True))
    fold_of_row = np.array([fold_of_clip.get(clip, -1) for clip in clips])
    others, labelled_rows = np.flatnonzero((fold_of_row < 0) & is_usable), np.flatnonzero(fold_of_row >= 0)
    if len(others) >= max(len(labelled_rows), MIN_CLIPS):
        return AlignmentPlan(splits={FINAL: split_clips(others, seed, held_out=labelled_rows)})
    splits = {
        f"fold{fold}": split_clips(np.flatnonzero((fold_of_row != fold) & is_usable), seed, held_out=held_out)
        for fold in range(folds.count)
        if len(held_out := np.flatnonzero(fold_of_row == fold))
    }
    of_clip = {clip: f"fold{fold}" for clip, fold in zip(clips, fold_of_row.tolist(), strict=True) if fold >= 0}
    final = split_clips(np.flatnonzero(is_usable), seed)
    return AlignmentPlan(splits={**splits, FINAL: final}, aligner_of_clip=of_clip)

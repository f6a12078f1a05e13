"""The folds that adapters were trained on, which a stage that uses their features has to reuse."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mertool.errors import MertoolError
from mertool.learning.folds import Folds
from mertool.learning.folds_file import assign_missing_folds, get_folds, read_run_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.runs import Run
from mertool.store import FeatureStore


def adapter_folds(
    stores: Sequence[FeatureStore], examples: LabelledClips, *, folds: int | Path | None, seed: int
) -> Folds | None:
    """Return the folds of the adapters that made the features of `stores`; None if no store has an adapter.

    With other folds, the features of a held-out clip would come from an adapter that was trained on its label. So
    `folds`, the value of `--folds`, must be None or ask for the same ones; others raise MertoolError.
    """
    adapters = sorted({str(store.provenance.get("adapter")) for store in stores if store.recipe.adapter})
    if not adapters:
        return None
    fold_of_clip = _read_common_folds(adapters)
    count = max(fold_of_clip.values()) + 1
    # Clips without audio have no adapter, so their fold is assigned here.
    assigned = assign_missing_folds({clip: str(fold) for clip, fold in fold_of_clip.items()}, examples)
    fold_of = np.array([int(assigned[clip]) for clip in examples.clips], np.int64)
    result = Folds(fold_of, count, f"{count} folds, those of the adapters in {', '.join(adapters)}")
    if isinstance(folds, Path):
        adapted = np.isin(examples.clips, list(fold_of_clip))
        agree = _same_partition(get_folds(folds, examples, seed), result, adapted)
    else:
        agree = folds is None or folds == count
    if not agree:
        raise MertoolError(
            f"the features were adapted on the {count} folds of {adapters[0]}, other folds would mix training and "
            "held-out clips of the adapters: leave out --folds"
        )
    return result


def _read_common_folds(adapters: list[str]) -> dict[str, int]:
    """Return the fold of each clip, which must be the same in all runs of adapters."""
    runs = [Run.read(Path(adapter), "finetune", "folds") for adapter in adapters]
    first, *rest = (read_run_folds(run.folder / "run.json") for run in runs)
    for adapter, folds in zip(adapters[1:], rest, strict=True):
        if folds != first:
            raise MertoolError(
                f"{adapters[0]} and {adapter} were trained on different folds: give `mertool finetune` the same --folds"
            )
    return dict(first)


def _same_partition(first: Folds, second: Folds, mask: np.ndarray) -> bool:
    """Return True if the folds are equal on the clips of `mask` (N,), however they are numbered."""
    pairs = set(zip(first.fold_of[mask].tolist(), second.fold_of[mask].tolist(), strict=True))
    return len(pairs) == max(first.count, second.count)

"""Folds that features were adapted on, which whatever is trained on those features has to keep to."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mertool.errors import MertoolError
from mertool.learning.folds import Folds, assign_missing_folds, get_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.runs import Run
from mertool.store import FeatureStore


def adapter_folds(
    stores: Sequence[FeatureStore], examples: LabelledClips, asked: int | Path | None, seed: int
) -> Folds | None:
    """The folds of the adapters of these stores, None where nothing is adapted.

    With others, an adapter that learned from a speaker would give the features of clips that this speaker's fold holds
    out: `asked` ones (a number, or a file) that differ are an error.
    """
    adapters = sorted({str(store.origin["adapter"]) for store in stores if store.recipe.adapter})
    if not adapters:
        return None
    table = _table(adapters)
    count = max(table.values()) + 1
    # Clips without sound have no adapter.
    placed = assign_missing_folds({clip: str(fold) for clip, fold in table.items()}, examples)
    of = [int(placed[clip]) for clip in examples.clips]
    folds = Folds(np.array(of, np.int64), count, f"{count} folds, those of the adapters in {', '.join(adapters)}")
    if not _agrees(asked, folds, np.isin(examples.clips, list(table)), examples, seed):
        raise MertoolError(
            f"the features were adapted on the {count} folds of {adapters[0]}, others would mix what adapters saw: "
            "leave out --folds"
        )
    return folds


def _table(adapters: list[str]) -> dict[str, int]:
    """Clip to fold, the same for all adapters."""
    first, *others = (Run.read(Path(adapter), "finetune", "folds").info["folds"] for adapter in adapters)
    for adapter, table in zip(adapters[1:], others, strict=True):
        if table != first:
            raise MertoolError(
                f"{adapters[0]} and {adapter} were trained on different folds: give `mertool finetune` the same --folds"
            )
    return dict(first)


def _agrees(asked: int | Path | None, folds: Folds, known: np.ndarray, examples: LabelledClips, seed: int) -> bool:
    """Whether what was asked for is these folds, in whatever order they are numbered, on the `known` clips (N,)."""
    if not isinstance(asked, Path):
        return asked is None or asked == folds.count
    given = get_folds(asked, examples, seed)
    pairs = set(zip(given.of[known].tolist(), folds.of[known].tolist(), strict=True))
    return len(pairs) == max(given.count, folds.count)

"""Scores of trained systems on the clips that their members held out."""

from typing import Any

import numpy as np

from mertool.fusion.cross_validation import CrossValidatedEnsemble
from mertool.learning.folds import speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.metrics import confusion_matrix, mcnemar, paired_bootstrap, score_json, scores_from_confusion

AFTERWARDS = "the best part was chosen after the fact, by the scores above"


def score_system(
    system: CrossValidatedEnsemble, here: np.ndarray, examples: LabelledClips, classes: int, seed: int
) -> dict[str, Any]:
    """Scores on the examples `here` (N,): a clip without a modality gives that part nothing to judge by."""
    guess, groups = system.held_out.argmax(1), _speakers(examples, here)
    return {
        "clips": int(here.sum()),
        **score_json(examples.labels[here], guess[here], classes, seed=seed, groups=groups),
    }


def against_best(
    systems: dict[str, tuple[CrossValidatedEnsemble, np.ndarray]], examples: LabelledClips, classes: int, seed: int
) -> dict[str, Any]:
    """The last system against the best of the others, on the examples that this one has features of."""
    *parts, last = systems
    tables = {
        name: confusion_matrix(examples.labels[here], _guess(systems, name)[here], classes)
        for name, (_, here) in systems.items()
    }
    best = max(parts, key=lambda name: scores_from_confusion(tables[name])["waf"])
    here = systems[best][1]
    truth, first, second = (values[here] for values in (examples.labels, _guess(systems, best), _guess(systems, last)))
    return {
        "part": best,
        "note": AFTERWARDS,
        "clips": int(here.sum()),
        **paired_bootstrap(truth, first, second, classes=classes, seed=seed, groups=_speakers(examples, here)),
        "mcnemar": mcnemar(truth, first, second),
    }


def majority_class_waf(labels: np.ndarray, classes: int) -> float:
    """Weighted F1 of always guessing the largest class."""
    always = np.full_like(labels, np.bincount(labels).argmax())
    return float(scores_from_confusion(confusion_matrix(labels, always, classes))["waf"])


def _waf(system: CrossValidatedEnsemble, here: np.ndarray, examples: LabelledClips, classes: int) -> float:
    table = confusion_matrix(examples.labels[here], system.held_out.argmax(1)[here], classes)
    return float(scores_from_confusion(table)["waf"])


def _guess(systems: dict[str, tuple[CrossValidatedEnsemble, np.ndarray]], name: str) -> np.ndarray:
    return systems[name][0].held_out.argmax(1)


def _speakers(examples: LabelledClips, here: np.ndarray) -> np.ndarray | None:
    """Whom intervals draw anew: the speakers of some clips where all are known, else the clips (None)."""
    groups = speaker_groups(examples)
    return None if groups is None else groups[here]

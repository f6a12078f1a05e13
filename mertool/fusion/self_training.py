"""Self-training of a system: `pseudo.self_train` with the members of `train_system`.

singles = [train_system([features[m]], present[:, [m]], examples, folds, settings) for each part m]
system, done = self_train_system(features, present, examples, folds, settings, singles, SelfTraining())
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from mertool.fusion.batches import Features
from mertool.fusion.cross_validation import CrossValidatedEnsemble, Extra, Settings, train_system
from mertool.fusion.pseudo_labels import Round, SelfTrained, SelfTraining, UnimodalPredictions, self_train
from mertool.learning.folds import Folds, speaker_groups
from mertool.learning.labelled_clips import LabelledClips


def self_train_system(
    features: Features,
    present: torch.Tensor,
    examples: LabelledClips,
    folds: Folds,
    settings: Settings,
    singles: Sequence[CrossValidatedEnsemble],
    options: SelfTraining,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[CrossValidatedEnsemble, SelfTrained]:
    """Train a system with pseudo-labels; it is the one of the last round.

    features: list of (N + U, L, D), present (N + U, P): rows of the N examples, then of the unlabelled clips. singles:
    each part alone on the same rows, trained on labelled clips; without them (one part) nothing has to agree.
    Hyper-parameters are searched for once, on labelled clips.
    """
    labelled = len(examples)
    available = present[labelled:].cpu().numpy()
    witnesses = [
        UnimodalPredictions(single.by_fold[:, labelled:], available[:, part]) for part, single in enumerate(singles)
    ]
    before: list[CrossValidatedEnsemble] = []

    def train(pseudo: np.ndarray) -> Round:
        def step(done: int, total: int) -> None:
            progress(len(before) * total + done, (options.rounds + 1) * total)

        plans = before[0].plans if before else None
        system = train_system(features, present, examples, folds, settings, Extra(pseudo), step, plans)
        before.append(replace(system, chosen=before[0].chosen if before else system.chosen))
        return Round(system.held_out, system.by_fold[:, labelled:], before[-1])

    groups = speaker_groups(examples)
    done = self_train(train, len(available), witnesses, examples.labels, folds, options, settings.seed, groups)
    return done.last.kept, done

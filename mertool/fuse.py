"""Stage `fuse`: one classifier over the features of any number of stores.

Folds x seeds of a head are trained at once. The score is of each clip by the members that did not train on its fold;
nothing is chosen on held-out clips, unless MERTools's protocol is asked for, which says so. The run is a bundle: it
holds, or names by digest, everything `predict` needs to score raw clips.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from mertool.bundle import FeatureSpec, check_provenance, describe_features, write
from mertool.devices import resolve_device
from mertool.errors import MertoolError
from mertool.files import digest_json
from mertool.fusion.batches import Features
from mertool.fusion.correcting import correct
from mertool.fusion.cross_validation import (
    OPTIMISTIC,
    CrossValidatedEnsemble,
    Settings,
    train_system,
)
from mertool.fusion.hyperparameters import Draw, shuffled_folds
from mertool.fusion.pseudo_labels import SelfTraining
from mertool.fusion.scoring import against_best, majority_class_waf, score_system
from mertool.fusion.self_training import self_train_system
from mertool.fusion.trainer import Schedule
from mertool.fusion.unlabelled import match_stores, unlabelled_clips
from mertool.learning.adapter_folds import adapter_folds
from mertool.learning.cached_features import load_features
from mertool.learning.folds import Folds, speaker_groups
from mertool.learning.folds_file import folds_key, folds_option, get_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.manifest import Manifest
from mertool.metrics import confusion_matrix
from mertool.options.fuse import MERTOOLS, FuseOptions
from mertool.predictions import Predictions
from mertool.runs import Run, RunDraft, cache_key, find_reusable_run, new_run
from mertool.store import FeatureStore

FOLDS, ROUNDS = 5, 3
HEAD, OFFICIAL_HEAD = "attention", "attention-mertools"
ADAPTED = "the unlabelled clips have features of the adapter that learned all labels, those of held-out clips too"


def make_settings(options: FuseOptions) -> Settings:
    """What is trained. MERTools: its head, six repetitions, at most 100 epochs, Adam with a weight decay of 1e-5 at
    a constant rate, no modality dropout. A search: at most 100 epochs at a constant rate, since an epoch is chosen.
    """
    official = options.protocol == MERTOOLS
    chosen = official or options.search > 0
    schedule = Schedule(
        batch=options.batch,
        weight_decay=1e-5 if official else 0.01,
        decoupled=not official,
        cosine=not chosen,
        modality_dropout=_default(options.modality_dropout, 0.0 if official else 0.15),
        feature_noise=options.feature_noise,
        mixup=options.mixup,
        label_smoothing=options.label_smoothing,
        class_weights=options.class_weights,
        contrast=options.contrast,
    )
    return Settings(
        head=_default(options.head, OFFICIAL_HEAD if official else HEAD),
        classes=len(options.classes),
        draw=Draw(options.width, options.dropout, options.learning_rate),
        search=options.search,
        protocol=options.protocol,
        seeds=_default(options.seeds, 6 if official else 3),
        epochs=_default(options.epochs, 100 if chosen else 60),
        seed=options.seed,
        schedule=schedule,
    )


def _default(value: Any, other: Any) -> Any:
    return other if value is None else value


@dataclass(frozen=True)
class _Data:
    """Features of all examples, then of unlabelled clips, list of (N + U, L, D), and which are present (N + U, M);
    names of the stores, and how many clips are unlabelled by name but labelled ones."""

    names: list[str]
    features: Features
    present: torch.Tensor
    dropped: int = 0

    def only(self, number: int) -> "_Data":
        """One part, for its score alone."""
        return _Data([self.names[number]], [self.features[number]], self.present[:, number : number + 1])

    def any_present(self) -> np.ndarray:
        """(N + U,) true where a clip has some feature."""
        return self.present.any(1).cpu().numpy()


def fuse(
    stores: list[Path], manifest: Manifest, output: Path, options: FuseOptions, progress: Callable[[int, int], None]
) -> tuple[Run, bool]:
    """Train and save the bundle; the run, and whether it was there already."""
    _check_names(stores)
    with ExitStack() as stack:
        opened = [stack.enter_context(FeatureStore(path)) for path in stores]
        parts = [describe_features(store) for store in opened]
        others = [stack.enter_context(FeatureStore(path)) for path in options.unlabelled]
        key = cache_key(
            "fuse",
            {name: value for name, value in options.affecting_result().items() if name != "unlabelled"}
            | {"folds": folds_option(options.folds)},
            {
                "folds": folds_key(options.folds),
                "stores": [[store.path.stem, store.fingerprint, store.digests()] for store in opened],
                "unlabelled": sorted([store.fingerprint, digest_json(store.digests())] for store in others),
                "manifest": manifest.digest(),
            },
        )
        if found := find_reusable_run(output, "fuse", key=key, options=options):
            return found, True
        check_provenance(parts)
        others = match_stores(opened, others) if others else []
        examples = LabelledClips.from_manifest(manifest, options.classes)
        data = _gather(opened, others, examples, resolve_device(options.device))
        folds = _choose_folds(opened, examples, options)
    systems, taught = _train(data, examples, folds, options, progress)
    _save(output, key, options, parts, data, examples, folds, systems, taught)
    return Run.read(output, "fuse"), False


def _check_names(stores: list[Path]) -> None:
    names = [path.stem for path in stores]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise MertoolError(f"two stores are named '{repeated[0]}': the file name tells them apart in the results")


def _gather(
    stores: list[FeatureStore], others: list[FeatureStore], examples: LabelledClips, device: torch.device
) -> _Data:
    for store in stores:
        examples.present_in(store)
    features, present = load_features(stores, examples.clips)
    dropped = 0
    if others:
        clips, dropped = unlabelled_clips(stores, others, examples.clips)
        more, there = load_features(others, clips)
        features = [np.concatenate(pair) for pair in zip(features, more, strict=True)]
        present = np.concatenate([present, there])
    on_device = [torch.from_numpy(values).to(device) for values in features]
    return _Data([store.path.stem for store in stores], on_device, torch.from_numpy(present).to(device), dropped)


def _choose_folds(stores: list[FeatureStore], examples: LabelledClips, options: FuseOptions) -> Folds:
    """Those of the adapters, where there are some; else as asked."""
    if found := adapter_folds(stores, examples, folds=options.folds, seed=options.seed):
        return found
    asked = FOLDS if options.folds is None else options.folds
    if options.protocol == MERTOOLS and isinstance(asked, int):
        return shuffled_folds(examples, asked, options.seed)
    return get_folds(asked, examples, options.seed)


Systems = dict[str, tuple[CrossValidatedEnsemble, np.ndarray]]  # with each the examples (N,) that it can score


def _train(
    data: _Data, examples: LabelledClips, folds: Folds, options: FuseOptions, progress: Callable[[int, int], None]
) -> tuple[Systems, dict[str, Any] | None]:
    """Every part alone, where there are several, and last all together; and what self-training reports."""
    several, settings = len(data.names) > 1, make_settings(options)
    parts = [data.only(number) for number in range(len(data.names))] if several else []
    count, found = len(parts) + 1, {}
    for number, part in enumerate(parts):
        step = partial(_step, progress, number, count)
        system = train_system(part.features, part.present, examples, folds, settings, progress=step)
        found[part.names[0]] = system, part.any_present()[: len(examples)]
    step, taught = partial(_step, progress, len(parts), count), None
    if options.unlabelled and options.rounds != 0:
        singles = [system for system, _ in found.values()]
        rounds = SelfTraining(_default(options.rounds, ROUNDS))
        system, done = self_train_system(data.features, data.present, examples, folds, settings, singles, rounds, step)
        taught = {**done.report, "dropped": data.dropped}
    else:
        system = train_system(data.features, data.present, examples, folds, settings, progress=step)
    found["fusion" if several else data.names[0]] = system, data.any_present()[: len(examples)]
    return found, taught


def _step(progress: Callable[[int, int], None], before: int, systems: int, done: int, total: int) -> None:
    progress(before * total + done, systems * total)


def _save(
    output: Path,
    key: str,
    options: FuseOptions,
    parts: list[FeatureSpec],
    data: _Data,
    examples: LabelledClips,
    folds: Folds,
    systems: Systems,
    taught: dict[str, Any] | None,
) -> None:
    settings = make_settings(options)
    last, here = systems[list(systems)[-1]]
    there = data.any_present()[len(examples) :] if options.prior else None
    correction, effect = correct(last, examples, folds, here, there, options.calibrate, options.class_weights)
    selection = _selection(settings)
    with new_run(
        output,
        "fuse",
        key=key,
        options=asdict(options),
        seed=options.seed,
        settings=asdict(settings),
        selection=selection,
        classes=list(options.classes),
        folds=folds.to_json(examples),
    ) as draft:
        write(draft, parts, groups=last.groups, correction=correction)
        draft.metrics.update(
            {
                "clips": len(examples),
                "folds": folds.description,
                "members": folds.count * settings.seeds,
                "selection": selection,
                "intervals": "clips" if speaker_groups(examples) is None else "speakers",
                "cross_validation": {
                    name: score_system(system, here, examples, len(options.classes), options.seed)
                    for name, (system, here) in systems.items()
                },
                "chosen": {name: system.chosen for name, (system, _) in systems.items() if system.chosen},
                "always_largest_class": majority_class_waf(examples.labels, len(options.classes)),
                "correction": effect,
                "loss": last.losses,
            }
        )
        if taught:
            adapted = any(part.recipe.adapter for part in parts)
            draft.metrics["self_training"] = {**taught, "note": ADAPTED} if adapted else taught
        if len(systems) > 1:
            draft.metrics["against_best_part"] = against_best(systems, examples, len(options.classes), options.seed)
        _held_out(draft, parts, data, examples, last, options.classes)
        _draw(draft, examples.labels, last.held_out.argmax(1), options.classes)


def _selection(settings: Settings) -> str:
    """What chose hyper-parameters and epochs, in words."""
    if settings.protocol == MERTOOLS:
        return OPTIMISTIC
    if settings.search:
        return (
            f"nested: of {settings.search} draws one, and its epochs, were chosen by a development part of each fold's "
            "training clips"
        )
    return "none: hyper-parameters and epochs were given"


def _held_out(
    draft: RunDraft,
    parts: list[FeatureSpec],
    data: _Data,
    examples: LabelledClips,
    system: CrossValidatedEnsemble,
    classes: tuple[str, ...],
) -> None:
    """Predictions for the labelled clips by members that did not train on them, as `mertool evaluate` reads them.

    They are not corrected: the temperature was fitted on them."""
    present = data.present[: len(examples)].cpu().numpy()
    rows = np.flatnonzero(present.any(1))
    kinds = [part.modality for part in parts]
    modalities = [
        tuple(dict.fromkeys(kind for kind, is_here in zip(kinds, present[row], strict=True) if is_here)) for row in rows
    ]
    clips = tuple(examples.clips[row] for row in rows)
    probabilities = softmax(system.held_out[rows].astype(np.float64), axis=1)
    Predictions(clips, classes, probabilities, tuple(modalities)).write(draft.folder / "held_out.csv")


def _draw(draft: RunDraft, labels: np.ndarray, guess: np.ndarray, classes: tuple[str, ...]) -> None:
    from mertool.plots import plot_confusion_matrix, plot_score_bars

    scores = draft.metrics["cross_validation"]
    bars = {name: tuple(value["waf"].values()) for name, value in scores.items()}
    title = "Cross-validation" + (" (optimistic)" if draft.info["selection"] == OPTIMISTIC else "")
    plot_score_bars(draft.folder / "scores", bars, title, draft.metrics["always_largest_class"])
    plot_confusion_matrix(draft.folder / "confusion", confusion_matrix(labels, guess, len(classes)), classes)

"""Stage `fuse`: one classifier over the features of any number of stores.

Folds x seeds members of a head are trained at once. Each clip is scored by the members that did not train on its fold.
Nothing is selected on held-out clips, unless MERTools's protocol is asked for, whose results are labelled optimistic.
The run is a bundle: it holds, or names by digest, everything that `predict` needs to score raw clips.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from mertool.bundle import FeatureSpec, check_provenance, describe_features, write
from mertool.devices import resolve_device
from mertool.errors import MertoolError
from mertool.files import digest_json
from mertool.fusion.calibration import calibrate_and_correct
from mertool.fusion.cross_validation import OPTIMISTIC, CrossValidatedEnsemble, EnsembleConfig, train_ensemble
from mertool.fusion.ensemble import part_progress
from mertool.fusion.hyperparameters import Trial, official_folds
from mertool.fusion.modality_features import ModalityFeatures
from mertool.fusion.scoring import compare_with_best_modality, majority_class_waf, score_ensemble
from mertool.fusion.self_training import SelfTraining, self_train
from mertool.fusion.trainer import FusionTraining
from mertool.fusion.unlabelled import match_stores, unlabelled_clips
from mertool.learning.adapter_folds import adapter_folds
from mertool.learning.cached_features import load_features
from mertool.learning.folds import Folds, speaker_groups, warn_of_rare_classes
from mertool.learning.folds_file import folds_key, folds_option, get_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.manifest import Manifest
from mertool.metrics import confusion_matrix
from mertool.options.fuse import MERTOOLS, FuseOptions
from mertool.predictions import Predictions
from mertool.runs import Run, RunDraft, cache_key, find_reusable_run, new_run
from mertool.store import FeatureStore

N_FOLDS, SELF_TRAINING_ROUNDS = 5, 3
HEAD, OFFICIAL_HEAD = "attention", "attention-mertools"
ADAPTED = "the unlabelled clips have features of the adapter that learned all labels, those of held-out clips too"


@dataclass(frozen=True, kw_only=True)
class _FuseData:
    """Training data of the stage, and what the bundle says of it.

    Attributes:
        names: Of the stores, which name the modalities in the results.
        specs: Features as the bundle describes them, one per store.
        features: Of the N labelled clips, then of U unlabelled ones.
        labelled: Labels and speakers of the N clips.
        folds: Fold of each of the N clips.
        dropped: Clips of the unlabelled stores that were dropped because they are labelled.
    """

    names: list[str]
    specs: list[FeatureSpec]
    features: ModalityFeatures
    labelled: LabelledClips
    folds: Folds
    dropped: int


def fuse(
    stores: Sequence[Path],
    manifest: Manifest,
    output: Path,
    *,
    options: FuseOptions,
    progress: Callable[[int, int], None],
) -> tuple[Run, bool]:
    """Train the ensembles and write the bundle; return the run, and whether it was there already."""
    _check_names(stores)
    with ExitStack() as stack:
        opened = [stack.enter_context(FeatureStore(path)) for path in stores]
        unlabelled = [stack.enter_context(FeatureStore(path)) for path in options.unlabelled]
        key = _cache_key(opened, unlabelled, manifest, options)
        if run := find_reusable_run(output, "fuse", key=key, options=options, inputs=[*stores, manifest.source]):
            return run, True
        data = _load(opened, unlabelled, manifest, options)
    rare_classes = warn_of_rare_classes(data.labelled, [data.folds], options.classes)
    config = ensemble_config(options)
    unimodal, fusion, self_training = _train(data, config, options, progress)
    correction, effect = calibrate_and_correct(
        fusion,
        data.labelled,
        data.folds,
        unlabelled=data.features.has_any()[len(data.labelled) :] if options.prior else None,
        calibrate=options.calibrate,
        class_weights=options.class_weights,
    )
    facts = {"seed": options.seed, "settings": asdict(config), "selection": _selection(config)}
    counts = np.bincount(data.labelled.labels, minlength=len(options.classes)).tolist()
    facts |= {"class_counts": dict(zip(options.classes, counts, strict=True))}
    facts |= {"classes": list(options.classes), "folds": data.folds.to_json(data.labelled)}
    with new_run(output, "fuse", key=key, options=asdict(options), **facts) as draft:
        draft.metrics.update(_metrics(data, config, unimodal, fusion))
        draft.metrics.update(correction=effect, rare_classes=rare_classes)
        if self_training:
            draft.metrics["self_training"] = self_training
        _write_held_out(draft, data, fusion)
        _plot(draft, data.labelled.labels, fusion.held_out_logits.argmax(1))
        write(draft, data.specs, groups=fusion.weights, correction=correction)
    return Run.read(output, "fuse"), False


def _train(
    data: _FuseData, config: EnsembleConfig, options: FuseOptions, progress: Callable[[int, int], None]
) -> tuple[dict[str, CrossValidatedEnsemble], CrossValidatedEnsemble, dict[str, Any] | None]:
    """Train an ensemble for each store if there are several, and one for all.

    Returns the unimodal ensembles by name, that of all stores, and the report of self-training, if there is any.
    """
    features, labelled, folds = data.features, data.labelled, data.folds
    unimodal_names = data.names if len(data.names) > 1 else []
    parts = len(unimodal_names) + 1
    unimodal = {
        name: train_ensemble(
            features.modality(index), labelled, folds, config, progress=part_progress(progress, index, parts)
        )
        for index, name in enumerate(unimodal_names)
    }
    last_part = part_progress(progress, parts - 1, parts)
    if not options.unlabelled or options.rounds == 0:
        return unimodal, train_ensemble(features, labelled, folds, config, progress=last_part), None
    result = self_train(
        features,
        labelled,
        folds,
        config,
        unimodal=list(unimodal.values()),
        self_training=SelfTraining(_default(options.rounds, SELF_TRAINING_ROUNDS)),
        progress=last_part,
    )
    report = {**result.report, "dropped": data.dropped}
    is_adapted = any(spec.recipe.adapter for spec in data.specs)
    return unimodal, result.ensemble, {**report, "note": ADAPTED} if is_adapted else report


def ensemble_config(options: FuseOptions) -> EnsembleConfig:
    """Return what is trained; options that are None have the defaults of the protocol.

    Those of MERTools: its head, six repetitions, at most 100 epochs, Adam with a weight decay of 1e-5 at a constant
    learning rate, no modality dropout. A search trains at most 100 epochs at a constant rate, since a cosine would
    favour the last epoch.
    """
    is_official = options.protocol == MERTOOLS
    selects_epoch = is_official or options.search > 0
    return EnsembleConfig(
        head=_default(options.head, OFFICIAL_HEAD if is_official else HEAD),
        classes=len(options.classes),
        trial=Trial(
            width=options.width,
            dropout=options.dropout,
            learning_rate=options.learning_rate,
            epochs=_default(options.epochs, 100 if selects_epoch else 60),
        ),
        search=options.search,
        protocol=options.protocol,
        seeds=_default(options.seeds, 6 if is_official else 3),
        seed=options.seed,
        training=FusionTraining(
            batch=options.batch,
            weight_decay=1e-5 if is_official else 0.01,
            decoupled=not is_official,
            cosine=not selects_epoch,
            modality_dropout=_default(options.modality_dropout, 0.0 if is_official else 0.15),
            label_smoothing=options.label_smoothing,
            class_weights=options.class_weights,
        ),
    )


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _check_names(stores: Sequence[Path]) -> None:
    names = [path.stem for path in stores]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise MertoolError(f"two stores are named '{repeated[0]}': the file name tells them apart in the results")


def _cache_key(
    stores: Sequence[FeatureStore], unlabelled: Sequence[FeatureStore], manifest: Manifest, options: FuseOptions
) -> str:
    """Return the digest of everything that changes the result."""
    values = {name: value for name, value in options.affecting_result().items() if name != "unlabelled"}
    inputs = {
        "folds": folds_key(options.folds),
        "stores": [[store.path.stem, store.fingerprint, store.digests()] for store in stores],
        "unlabelled": sorted([store.fingerprint, digest_json(store.digests())] for store in unlabelled),
        "manifest": manifest.digest(),
    }
    return cache_key("fuse", {**values, "folds": folds_option(options.folds)}, inputs)


def _load(
    stores: list[FeatureStore], unlabelled: list[FeatureStore], manifest: Manifest, options: FuseOptions
) -> _FuseData:
    """Check that the bundle can be written, and read everything that is trained on."""
    specs = [describe_features(store) for store in stores]
    check_provenance(specs)
    partners = match_stores(stores, unlabelled) if unlabelled else []
    labelled = LabelledClips.from_manifest(manifest, options.classes)
    for store in stores:
        labelled.present_in(store)  # raises for a clip that was never extracted
    values, present = load_features(stores, labelled.clips)
    dropped = 0
    if partners:
        clips, dropped = unlabelled_clips(stores, partners, labelled.clips)
        unlabelled_values, unlabelled_present = load_features(partners, clips)
        values = [np.concatenate(pair) for pair in zip(values, unlabelled_values, strict=True)]
        present = np.concatenate([present, unlabelled_present])
    device = resolve_device(options.device)
    return _FuseData(
        names=[store.path.stem for store in stores],
        specs=specs,
        features=ModalityFeatures(
            [torch.from_numpy(array).to(device) for array in values], torch.from_numpy(present).to(device)
        ),
        labelled=labelled,
        folds=_choose_folds(stores, labelled, options),
        dropped=dropped,
    )


def _choose_folds(stores: list[FeatureStore], labelled: LabelledClips, options: FuseOptions) -> Folds:
    """Return the folds of the adapters if features are adapted, else those of `--folds`."""
    if folds := adapter_folds(stores, labelled, folds=options.folds, seed=options.seed):
        return folds
    requested = _default(options.folds, N_FOLDS)
    if options.protocol == MERTOOLS and isinstance(requested, int):
        return official_folds(labelled, requested, options.seed)
    return get_folds(requested, labelled, options.seed)


def _metrics(
    data: _FuseData,
    config: EnsembleConfig,
    unimodal: dict[str, CrossValidatedEnsemble],
    fusion: CrossValidatedEnsemble,
) -> dict[str, Any]:
    """Return the cross-validated scores and what they were made of, for metrics.json."""
    labelled, classes, seed = data.labelled, config.classes, config.seed
    ensembles = {**unimodal, "fusion" if unimodal else data.names[0]: fusion}
    metrics = {
        "clips": len(labelled),
        "folds": data.folds.description,
        "members": data.folds.count * config.seeds,
        "selection": _selection(config),
        "intervals": "clips" if speaker_groups(labelled) is None else "speakers",
        "cross_validation": {
            name: score_ensemble(ensemble, labelled, classes=classes, seed=seed) for name, ensemble in ensembles.items()
        },
        "chosen": {name: ensemble.selection for name, ensemble in ensembles.items() if ensemble.selection},
        "always_largest_class": majority_class_waf(labelled.labels, classes),
        "loss": fusion.losses,
    }
    if unimodal:
        comparison = compare_with_best_modality(fusion, unimodal, labelled, classes=classes, seed=seed)
        metrics["against_best_part"] = comparison
    return metrics


def _selection(config: EnsembleConfig) -> str:
    """Return in words what selected hyper-parameters and epochs."""
    if config.protocol == MERTOOLS:
        return OPTIMISTIC
    if config.search:
        return (
            f"nested: of {config.search} draws one, and its epochs, were chosen by a development part of each fold's "
            "training clips"
        )
    return "none: hyper-parameters and epochs were given"


def _write_held_out(draft: RunDraft, data: _FuseData, ensemble: CrossValidatedEnsemble) -> None:
    """Write the held-out predictions of the labelled clips; uncorrected, because the temperature was fitted on them."""
    rows = np.flatnonzero(ensemble.can_score)
    present = data.features.present[: len(data.labelled)].cpu().numpy()
    modality_of = np.array([spec.modality for spec in data.specs])
    modalities = tuple(tuple(dict.fromkeys(modality_of[present[row]].tolist())) for row in rows)
    clips = tuple(data.labelled.clips[row] for row in rows)
    probabilities = softmax(ensemble.held_out_logits[rows].astype(np.float64), axis=1)
    classes = tuple(draft.info["classes"])
    Predictions(clips, classes, probabilities, modalities).write(draft.folder / "held_out.csv")


def _plot(draft: RunDraft, labels: np.ndarray, predicted: np.ndarray) -> None:
    """Draw the scores of all ensembles, and the confusion matrix of the one in the bundle."""
    from mertool.plots import plot_confusion_matrix, plot_score_bars

    classes = tuple(draft.info["classes"])
    scores = draft.metrics["cross_validation"]
    bars = {name: tuple(value["waf"].values()) for name, value in scores.items()}
    title = "Cross-validation" + (" (optimistic)" if draft.info["selection"] == OPTIMISTIC else "")
    plot_score_bars(draft.folder / "scores", bars, title, draft.metrics["always_largest_class"])
    plot_confusion_matrix(draft.folder / "confusion", confusion_matrix(labels, predicted, len(classes)), classes)

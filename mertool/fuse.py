"""Stage `fuse`: one classifier, or one regression of a number, over the features of any number of stores.

Folds x seeds members of a head are trained at once. Each clip is scored by the members that did not train on its fold.
Nothing is selected on held-out clips, unless MERTools's protocol is asked for, whose results are labelled optimistic.
The run is a bundle: it holds, or names by digest, everything that `predict` needs to score raw clips.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from mertool.alignment.cross_fitting import warn_of_trained_clips
from mertool.bundle import FeatureSpec, check_provenance, describe_features, write
from mertool.devices import resolve_device
from mertool.errors import MertoolError
from mertool.files import digest_json
from mertool.fusion.calibration import Correction, calibrate_and_correct
from mertool.fusion.cross_validation import OPTIMISTIC, CrossValidatedEnsemble, EnsembleConfig, train_ensemble
from mertool.fusion.ensemble import Progress, stage_progress
from mertool.fusion.hyperparameters import Trial, official_folds
from mertool.fusion.modality_features import FusionData, ModalityFeatures
from mertool.fusion.scoring import (
    compare_with_best_modality,
    majority_class_waf,
    score_ensemble,
    score_of_mean,
    score_single_members,
)
from mertool.fusion.self_training import SelfTraining, self_train
from mertool.fusion.test_split import load_test_clips, score_test_clips
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
from mertool.predictions import AnyPredictions, NumberPredictions, Predictions
from mertool.runs import Run, RunDraft, Sources, cache_key, find_reusable_run, new_run
from mertool.store import FeatureStore
from mertool.targets import Target, make_target

N_FOLDS, SELF_TRAINING_ROUNDS = 5, 3
HEAD, OFFICIAL_HEAD = "attention", "attention-mertools"
STATISTIC = "single models: mean over folds, then over repetitions; std over repetitions (n - 1)"
ADAPTED = "the unlabelled clips have features of the adapter that learned all labels, those of held-out clips too"


@dataclass(frozen=True, kw_only=True)
class _FuseInputs:
    """Training data of the stage, and what the bundle says of it.

    Attributes:
        names: Of the stores, which name the modalities in the results.
        specs: Features as the bundle describes them, one per store.
        data: The labelled clips and their folds, then the unlabelled ones.
        dropped: Clips of the unlabelled stores that were dropped because they are labelled.
    """

    names: list[str]
    specs: list[FeatureSpec]
    data: FusionData
    dropped: int


@dataclass(frozen=True, kw_only=True)
class _Ensembles:
    """The trained ensembles.

    Attributes:
        unimodal: An ensemble of each store by its name; none of a single store.
        fusion: The ensemble of all stores.
        self_training: Report of the self-training, if there was any.
    """

    unimodal: dict[str, CrossValidatedEnsemble]
    fusion: CrossValidatedEnsemble
    self_training: dict[str, Any] | None


def fuse(
    stores: Sequence[Path],
    manifest: Manifest,
    output: Path,
    *,
    options: FuseOptions,
    progress: Progress,
) -> tuple[Run, bool]:
    """Train the ensembles and write the bundle; return the run, and whether it was there already."""
    started = time.time()
    _check_names(stores)
    with ExitStack() as stack:
        opened = [stack.enter_context(FeatureStore(path)) for path in stores]
        unlabelled = [stack.enter_context(FeatureStore(path)) for path in options.unlabelled]
        key = _cache_key(opened, unlabelled, manifest, options=options)
        if run := find_reusable_run(output, "fuse", key=key, options=options, inputs=[*stores, manifest.source]):
            return run, True
        inputs = _load(opened, unlabelled, manifest, options=options)
        target = make_target(options.target, options.classes)
        device = resolve_device(options.device)
        # Numbers have no probabilities, in which form the predictions of the test split are written.
        test = load_test_clips(opened, manifest, target.classes, device) if target.classes else None
        warn_of_trained_clips(opened, inputs.data.labelled)
    config, labelled = ensemble_config(options), inputs.data.labelled
    rare_classes = warn_of_rare_classes(labelled, [inputs.data.folds], target.classes)
    ensembles = _train(inputs, config, options, progress=progress)
    correction, effect = _correct(ensembles.fusion, inputs.data, target, options)
    facts = {"seed": options.seed, "settings": asdict(config), "selection": _selection(config)}
    facts |= {"target": target.name, "classes": list(target.classes), "class_counts": _count_classes(labelled, target)}
    facts |= {"folds": inputs.data.folds.to_json(labelled)}
    sources: Sources = {
        "manifest": manifest.source,
        "stores": stores,
        "unlabelled": options.unlabelled,
        "folds": options.folds if isinstance(options.folds, Path) else None,
    }
    with new_run(output, "fuse", key=key, options=asdict(options), sources=sources, started=started, **facts) as draft:
        draft.metrics.update(_metrics(inputs, config, ensembles, target))
        draft.metrics.update(correction=effect, rare_classes=rare_classes)
        if ensembles.self_training:
            draft.metrics["self_training"] = ensembles.self_training
        if test:
            draft.metrics["test"] = score_test_clips(
                draft.folder, test, ensembles.fusion.weights, correction, classes=target.classes
            )
        _write_held_out(draft, inputs, ensembles.fusion, target=target, protocol=options.protocol)
        _plot(draft, labelled.labels, target.decide(ensembles.fusion.held_out_logits), target=target)
        write(draft, inputs.specs, groups=ensembles.fusion.weights, correction=correction)
    return Run.read(output, "fuse"), False


def _correct(
    ensemble: CrossValidatedEnsemble, data: FusionData, target: Target, options: FuseOptions
) -> tuple[Correction, dict[str, Any]]:
    """Return the correction of probabilities and its effect; numbers have none."""
    if not target.classes:
        return Correction(), {}
    return calibrate_and_correct(
        ensemble, data, calibrate=options.calibrate, prior=options.prior, class_weights=options.class_weights
    )


def _count_classes(labelled: LabelledClips, target: Target) -> dict[str, int]:
    """Return the number of training clips of each class; empty for numbers."""
    if not target.classes:
        return {}
    counts = np.bincount(labelled.labels, minlength=len(target.classes)).tolist()
    return dict(zip(target.classes, counts, strict=True))


def _train(inputs: _FuseInputs, config: EnsembleConfig, options: FuseOptions, *, progress: Progress) -> _Ensembles:
    """Train an ensemble for each store if there are several and `--no-unimodal` was not given, then one for all."""
    names = inputs.names if len(inputs.names) > 1 and options.unimodal else []
    stages = len(names) + 1
    unimodal = {
        name: train_ensemble(inputs.data.modality(index), config, progress=stage_progress(progress, index, stages))
        for index, name in enumerate(names)
    }
    last_stage = stage_progress(progress, stages - 1, stages)
    if not options.unlabelled or options.rounds == 0:
        fusion = train_ensemble(inputs.data, config, progress=last_stage)
        return _Ensembles(unimodal=unimodal, fusion=fusion, self_training=None)
    result = self_train(
        inputs.data,
        config,
        unimodal=list(unimodal.values()),
        self_training=SelfTraining(_default(options.rounds, SELF_TRAINING_ROUNDS)),
        progress=last_stage,
    )
    report = {**result.report, "dropped": inputs.dropped}
    if any(spec.recipe.adapter for spec in inputs.specs):
        report["note"] = ADAPTED
    return _Ensembles(unimodal=unimodal, fusion=result.ensemble, self_training=report)


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
        classes=make_target(options.target, options.classes).n_outputs,
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
    stores: Sequence[FeatureStore], unlabelled: Sequence[FeatureStore], manifest: Manifest, *, options: FuseOptions
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
    stores: list[FeatureStore], unlabelled: list[FeatureStore], manifest: Manifest, *, options: FuseOptions
) -> _FuseInputs:
    """Check that the bundle can be written, and read everything that is trained on."""
    specs = [describe_features(store) for store in stores]
    check_provenance(specs)
    partners = match_stores(stores, unlabelled) if unlabelled else []
    labelled = LabelledClips.from_manifest(manifest, make_target(options.target, options.classes))
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
    features = ModalityFeatures(
        [torch.from_numpy(array).to(device) for array in values], torch.from_numpy(present).to(device)
    )
    return _FuseInputs(
        names=[store.path.stem for store in stores],
        specs=specs,
        data=FusionData(features, labelled, _choose_folds(stores, labelled, options)),
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


def _metrics(inputs: _FuseInputs, config: EnsembleConfig, ensembles: _Ensembles, target: Target) -> dict[str, Any]:
    """Return the cross-validated scores and what they were made of, for metrics.json."""
    data, classes = inputs.data, config.classes
    name_of_fusion = "fusion" if len(inputs.names) > 1 else inputs.names[0]
    by_name = {**ensembles.unimodal, name_of_fusion: ensembles.fusion}
    scores = {name: score_ensemble(ensemble, data.labelled, target=target) for name, ensemble in by_name.items()}
    metrics = {
        "target": target.name,
        "clips": len(data.labelled),
        "folds": data.folds.description,
        "members": data.folds.count * config.seeds,
        "selection": _selection(config),
        "intervals": "clips" if speaker_groups(data.labelled) is None else "speakers",
        "chosen": {name: ensemble.selection for name, ensemble in by_name.items() if ensemble.selection},
        "loss": ensembles.fusion.losses,
    }
    if target.classes:
        metrics["always_largest_class"] = majority_class_waf(data.labelled.labels, classes)
    else:
        metrics["always_mean"] = score_of_mean(data.labelled, data.folds, target)
    if config.protocol == MERTOOLS:
        # The score of the ensemble is several points above that of its members, which is what MERTools publishes.
        metrics["single_models"] = {
            "statistic": STATISTIC,
            "folds": data.folds.count,
            "repetitions": config.seeds,
            "scores": {
                name: score_single_members(
                    ensemble, data if ensemble is ensembles.fusion else data.modality(index), classes=classes
                )
                for index, (name, ensemble) in enumerate(by_name.items())
            },
        }
        metrics["ensembles"] = scores
    else:
        metrics["cross_validation"] = scores
    if ensembles.unimodal:
        metrics["against_best_part"] = compare_with_best_modality(
            ensembles.fusion, ensembles.unimodal, data.labelled, target=target
        )
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


def _write_held_out(
    draft: RunDraft, inputs: _FuseInputs, ensemble: CrossValidatedEnsemble, *, target: Target, protocol: str
) -> None:
    """Write the held-out predictions of the labelled clips, in the protocol of MERTools those of single models, too.

    Probabilities are uncorrected, because the temperature was fitted on these clips.
    """
    data, rows = inputs.data, np.flatnonzero(ensemble.can_score)
    present = data.features.present[: len(data.labelled)].cpu().numpy()
    modality_of = np.array([spec.modality for spec in inputs.specs])
    modalities = tuple(tuple(dict.fromkeys(modality_of[present[row]].tolist())) for row in rows)
    clips = tuple(data.labelled.clips[row] for row in rows)
    logits_of = {"held_out.csv": ensemble.held_out_logits}
    if protocol == MERTOOLS:
        logits_of |= {f"held_out-{number}.csv": logits for number, logits in enumerate(ensemble.single_logits, 1)}
    for name, logits in logits_of.items():
        outputs = logits[rows].astype(np.float64)
        predictions: AnyPredictions
        if target.classes:
            predictions = Predictions(clips, target.classes, softmax(outputs, axis=1), modalities)
        else:
            predictions = NumberPredictions(clips, target.name, outputs[:, 0], modalities)
        predictions.write(draft.folder / name)


def _plot(draft: RunDraft, labels: np.ndarray, predicted: np.ndarray, *, target: Target) -> None:
    """Draw the scores of all ensembles and single models, and the confusion matrix of the ensemble in the bundle.

    Of numbers these are CCC, and predicted by true numbers.
    """
    from mertool.plots import plot_confusion_matrix, plot_numbers, plot_score_bars

    metrics, classes, main = draft.metrics, target.classes, target.measure.main
    title, interval = "Cross-validation", "95 % interval"
    scores = metrics.get("cross_validation") or metrics["ensembles"]
    bars = {name: tuple(value[main].values()) for name, value in scores.items()}
    if single := metrics.get("single_models"):
        title = "MERTools' protocol: cross-validation (optimistic)"
        interval = "95 % interval; of single models the standard deviation"
        bars = {}
        for name, ensemble in scores.items():
            mean, std = single["scores"][name]["waf"]["mean"], single["scores"][name]["waf"]["std"] or 0.0
            bars[f"{name}, single models"] = (mean, mean - std, mean + std)
            bars[f"{name}, ensemble"] = tuple(ensemble["waf"].values())
    if not classes:
        plot_score_bars(draft.folder / "scores", bars, title=title, interval=interval, number=target.name)
        plot_numbers(draft.folder / "numbers", labels, predicted, name=target.name)
        return
    plot_score_bars(
        draft.folder / "scores", bars, title=title, chance=metrics["always_largest_class"], interval=interval
    )
    plot_confusion_matrix(draft.folder / "confusion", confusion_matrix(labels, predicted, len(classes)), classes)

"""Stage `finetune`: train adapters in chosen layers of a speech encoder.

One adapter is trained per fold, without the clips of that fold, and one (`final`) on all clips. So the features of a
training clip can come from an adapter that was not trained on its label, and all scores are of held-out clips.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from mertool import encoders, registry
from mertool.adapters import methods as peft_methods
from mertool.adapters.cross_validation import AdapterSplit, adapter_splits
from mertool.adapters.data import (
    CACHE_FOLDER,
    AdaptationData,
    AdaptationDataSpec,
    read_adaptation_data,
    sample_unlabelled,
)
from mertool.adapters.finished import ADAPTERS, FinishedAdapters
from mertool.adapters.layer_probes import FrozenProbes
from mertool.adapters.method_comparison import compare_runs, plot_comparison
from mertool.adapters.probed_layers import read_probe
from mertool.adapters.reporting import write_results
from mertool.adapters.setup import AdapterConfig, AdapterSetup, prepare
from mertool.adapters.trainer import TrainingProgress, train_adapter
from mertool.devices import resolve_device, resolve_dtype, seeded_torch
from mertool.encoders.hidden_states import find_blocks
from mertool.encoders.windows import adaptation_window
from mertool.errors import MertoolError
from mertool.extraction.decoding import DecoderLimits
from mertool.extraction.plan import audio_digest
from mertool.extraction.progress import ProgressFactory
from mertool.features import parse_layers
from mertool.files import check_replaceable
from mertool.learning.accelerator import make_accelerator
from mertool.learning.folds import Folds, warn_of_rare_classes
from mertool.learning.folds_file import folds_key, folds_option, get_folds, write_folds
from mertool.learning.labelled_clips import IGNORE_INDEX, LabelledClips
from mertool.manifest import Manifest
from mertool.options.finetune import FinetuneOptions
from mertool.runs import Run, Sources, cache_key, find_reusable_run, new_run
from mertool.targets import Classes

KEYED_BY_CONTENT = ("encoder", "folds")  # options whose content, not whose text, is in a run's key
# HuBERT was trained on clusters of layer 9 of 12 (Hsu et al., 2021), chinese-hubert-large likewise.
TARGET_LAYER_FRACTION = 0.75


@dataclass(frozen=True, kw_only=True)
class _ResolvedOptions:
    """Everything that is known before the long work.

    Attributes:
        checkpoint: The encoder.
        weights: Digest of its weights.
        n_blocks: Number of its blocks.
        layers: Blocks to adapt.
        target_layer: Frozen layer that masked frames are reconstructed as; None for other targets and without masks.
        examples: The labelled clips, also those without audio.
        manifest: The labelled clips and the sample of unlabelled ones.
        device: Device to train on.
        dtype: Precision of extraction, and of forward passes in training.
    """

    checkpoint: encoders.CheckpointRef
    weights: str
    n_blocks: int
    layers: tuple[int, ...]
    target_layer: int | None
    examples: LabelledClips
    manifest: Manifest
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class _LabelledData:
    """Labelled clips with audio, their folds, and the split of each adapter.

    Attributes:
        examples: The clips.
        folds: The fold of each.
        splits: One per fold, and that of `final`.
        skipped: Labelled clips without audio, with the reason.
        cut: Clips of which only the beginning is used, as long as the encoder's window.
    """

    examples: LabelledClips
    folds: Folds
    splits: list[AdapterSplit]
    skipped: dict[str, str]
    cut: tuple[str, ...]


def finetune(
    manifest: Manifest, output: Path, options: FinetuneOptions, *, progress: ProgressFactory
) -> tuple[Run, bool]:
    """Train the adapters; return the run, and whether a complete run of the same inputs was reused."""
    started = time.time()
    options = read_probe(options, manifest)
    resolved = _resolve(manifest, options)
    key = _cache_key(resolved, manifest, options)
    if run := find_reusable_run(output, "finetune", key=key, options=options, inputs=[manifest.source]):
        return run, True
    # Faults in folds are raised before the long work; clips without audio, which need no fold, are not known yet.
    folds = get_folds(options.folds, resolved.examples, options.seed, complete=False)
    rare_classes = warn_of_rare_classes(resolved.examples, [folds], options.classes)
    accelerator = make_accelerator(resolved.device, resolved.dtype)
    setup, labelled = _prepare(resolved, options, output=output, accelerator=accelerator, progress=progress)
    finished = FinishedAdapters(output, is_writer=accelerator.is_main_process)
    finished.open(key)
    accelerator.wait_for_everyone()
    n_finished = sum(finished.load(split.name) is not None for split in labelled.splits)
    title = f"adapters ({n_finished} of {len(labelled.splits)} were trained before)" if n_finished else "adapters"
    results, frozen_probes = [], FrozenProbes.fit(setup, labelled.splits)
    with progress(title, "steps") as update:
        training = TrainingProgress(update, total=sum(map(setup.config.count_steps, labelled.splits)))
        for split in labelled.splits:
            result = finished.load(split.name)
            # Every process must look before the first one writes: all have to agree on what is trained.
            accelerator.wait_for_everyone()
            if result is None:
                adapter = train_adapter(setup, split, training.report_step)
                result = finished.save(setup, split, adapter, frozen_probes)
            training.finish(setup.config.count_steps(split))
            results.append(result)
    if accelerator.is_main_process:
        run_info = _run_info(resolved, options, setup=setup, labelled=labelled)
        sources: Sources = {
            "manifest": manifest.source,
            "probe": options.probe,
            "folds": options.folds if isinstance(options.folds, Path) else None,
        }
        with new_run(output, "finetune", key=key, sources=sources, started=started, **run_info) as draft:
            finished.adapters.rename(draft.folder / ADAPTERS)
            write_folds(draft.folder / "folds.csv", labelled.examples, labelled.folds)
            draft.metrics.update(
                folds=labelled.folds.description,
                skipped=labelled.skipped,
                cut=list(labelled.cut),
                rare_classes=rare_classes,
            )
            write_results(
                draft,
                setup,
                examples=labelled.examples,
                classes=options.classes,
                splits=labelled.splits,
                results=results,
            )
        finished.remove()
    accelerator.wait_for_everyone()
    return Run.read(output, "finetune"), False


def compare(
    manifest: Manifest, output: Path, options: FinetuneOptions, *, progress: ProgressFactory
) -> tuple[Run, bool]:
    """Train the methods of `options.compare` under the same conditions, each in a run named after it beside `output`.

    Returns the run that compares them, and whether it was reused.
    """
    started = time.time()
    options = read_probe(options, manifest)
    check_replaceable(output, manifest.source)  # before hours of training
    runs = {}
    for method in options.compare:
        # A method without a size ignores the budget; the table shows how many parameters it trains.
        has_size = registry.load(peft_methods.PACKAGE, "PEFT method", method).SIZE is not None
        own_options = replace(
            options,
            method=method,
            compare=(),
            budget=options.budget if has_size else None,
            size=options.size if has_size else None,
        )
        runs[method], _ = finetune(
            manifest, output.with_name(f"{output.name}-{method}"), own_options, progress=progress
        )
    key = cache_key("compare", {"budget": options.budget}, {"runs": [run.info["key"] for run in runs.values()]})
    if run := find_reusable_run(output, "compare", key=key, options=options, inputs=[manifest.source]):
        return run, True
    if not make_accelerator(resolve_device(options.device), torch.float32).is_main_process:
        return Run(output, {}), False
    info: dict[str, Any] = {"options": asdict(options), "seed": options.seed, "classes": list(options.classes)}
    sources: Sources = {"manifest": manifest.source, "runs": [run.folder for run in runs.values()]}
    with new_run(output, "compare", key=key, sources=sources, started=started, **info) as draft:
        examples = LabelledClips.from_manifest(manifest, Classes(options.classes))
        draft.metrics.update(compare_runs(runs, examples, n_classes=len(options.classes)))
        draft.metrics["budget"] = options.budget
        plot_comparison(draft.folder / "methods", draft.metrics)
    return Run.read(output, "compare"), False


def _resolve(manifest: Manifest, options: FinetuneOptions) -> _ResolvedOptions:
    """Resolve the options against the encoder, the manifest and the machine, and check them."""
    device = resolve_device(options.device)
    checkpoint = encoders.resolve_encoder(str(options.encoder), "audio")
    n_blocks = encoders.count_layers(checkpoint)
    layers = parse_layers(str(options.layers), n_blocks)
    if min(layers) < 1:
        raise MertoolError(f"layer 0 is the embedding and cannot be adapted: give --layers within 1 to {n_blocks}")
    examples = LabelledClips.from_manifest(manifest, Classes(options.classes))
    n_unlabelled = options.unlabelled if options.mask_weight > 0 else 0
    unlabelled = sample_unlabelled(manifest, n_unlabelled, options.seed)
    return _ResolvedOptions(
        checkpoint=checkpoint,
        weights=checkpoint.digest(),
        n_blocks=n_blocks,
        layers=layers,
        target_layer=_resolve_target_layer(options, n_blocks),
        examples=examples,
        manifest=manifest.subset([*examples.clips, *unlabelled]),
        device=device,
        dtype=resolve_dtype(options.dtype, device),
    )


def _resolve_target_layer(options: FinetuneOptions, n_blocks: int) -> int | None:
    if options.mask_weight == 0 or options.mask_target == "logmel":
        return None
    if options.target_layer is None:
        return max(1, round(TARGET_LAYER_FRACTION * n_blocks))
    if not 0 <= options.target_layer <= n_blocks:
        raise MertoolError(f"--target-layer {options.target_layer}: this encoder has layers 0 to {n_blocks}")
    return options.target_layer


def _cache_key(resolved: _ResolvedOptions, manifest: Manifest, options: FinetuneOptions) -> str:
    keyed = {name: value for name, value in options.affecting_result().items() if name not in KEYED_BY_CONTENT}
    return cache_key(
        "finetune",
        keyed | {"folds": folds_option(options.folds)},
        {
            "weights": resolved.weights,
            "clips": {clip.clip: audio_digest(clip) for clip in resolved.manifest.clips},
            "manifest": manifest.digest(),
            "folds": folds_key(options.folds),
            "dtype": str(resolved.dtype),
        },
    )


def _prepare(
    resolved: _ResolvedOptions,
    options: FinetuneOptions,
    *,
    output: Path,
    accelerator: Accelerator,
    progress: ProgressFactory,
) -> tuple[AdapterSetup, _LabelledData]:
    """Load the encoder, read the data of all clips, and divide the labelled ones."""
    # transformers draws the mask embedding of a checkpoint that has none.
    with seeded_torch(options.seed):
        encoder = encoders.load_encoder(resolved.checkpoint, "audio", device=accelerator.device, dtype=torch.float32)
    encoder.adaptable()  # raises before the long work
    config = _adapter_config(resolved, options, encoder.model)
    cache = output.absolute().parent / CACHE_FOLDER
    # The first process extracts what is missing; the others wait and read.
    with accelerator.main_process_first():
        spec = _data_spec(resolved, options, accelerator.device)
        data = read_adaptation_data(resolved.manifest, spec, cache=cache, encoder=encoder, progress=progress)
    data = _labelled_first(data, resolved)
    examples = resolved.examples.select(np.isin(resolved.examples.clips, data.names))
    folds = get_folds(options.folds, examples, options.seed)
    labelled = _LabelledData(
        examples=examples,
        folds=folds,
        splits=adapter_splits(folds),
        skipped={clip: reason for clip, reason in data.skipped.items() if clip in set(resolved.examples.clips)},
        cut=data.cut,
    )
    labels = np.full(len(data.names), IGNORE_INDEX)
    labels[: len(examples)] = examples.labels
    setup = prepare(
        encoder,
        data,
        labels,
        n_classes=len(options.classes),
        config=config,
        from_frontend=not options.prefix_cache,
        accelerator=accelerator,
    )
    return setup, labelled


def _adapter_config(resolved: _ResolvedOptions, options: FinetuneOptions, model: Any) -> AdapterConfig:
    """Return the configuration, with the size and the learning rate that the options leave to budget and method."""
    method = registry.load(peft_methods.PACKAGE, "PEFT method", options.method)
    size = options.size or method.SIZE
    if options.budget is not None:
        blocks = find_blocks(model, resolved.n_blocks)
        size = peft_methods.size_for_budget(
            model, blocks, resolved.layers, method=options.method, budget=options.budget
        )
    return AdapterConfig(
        method=options.method,
        size=size,
        layers=resolved.layers,
        mask_weight=options.mask_weight,
        mask_target=options.mask_target,
        class_weights=options.class_weights,
        label_smoothing=options.label_smoothing,
        epochs=options.epochs,
        batch_size=options.batch,
        learning_rate=float(method.RATE) if options.learning_rate is None else options.learning_rate,
        seed=options.seed,
    )


def _data_spec(resolved: _ResolvedOptions, options: FinetuneOptions, device: torch.device) -> AdaptationDataSpec:
    return AdaptationDataSpec(
        checkpoint=resolved.checkpoint,
        weights=resolved.weights,
        blocks=(min(resolved.layers) - 1,),
        target_layer=resolved.target_layer,
        log_mel=options.mask_weight > 0 and options.mask_target == "logmel",
        from_frontend=not options.prefix_cache,
        dtype=resolved.dtype,
        device=device,
        limits=DecoderLimits(options.workers, options.clip_timeout),
    )


def _labelled_first(data: AdaptationData, resolved: _ResolvedOptions) -> AdaptationData:
    """Put labelled clips first, in the order of the examples, so that rows of examples are rows of the data."""
    labelled = set(resolved.examples.clips)
    order = sorted(range(len(data.names)), key=lambda row: data.names[row] not in labelled)
    if data.names[order[0]] not in labelled:
        raise MertoolError(
            f"none of the {len(labelled)} labelled clips of {resolved.manifest.source} has readable audio"
        )
    return data.reordered(order)


def _run_info(
    resolved: _ResolvedOptions, options: FinetuneOptions, *, setup: AdapterSetup, labelled: _LabelledData
) -> dict[str, Any]:
    """Return the content of run.json."""
    folds = labelled.folds.to_json(labelled.examples)
    return {
        "options": {**asdict(options), "size": setup.config.size},
        "seed": options.seed,
        "classes": list(options.classes),
        "encoder": {
            **resolved.checkpoint.to_json(),
            "weights": resolved.weights,
            "window": adaptation_window(resolved.checkpoint),
        },
        "layers": list(resolved.layers),
        "folds": folds,
        "adapter_of_clip": {clip: f"fold{fold}" for clip, fold in folds.items()},
    }

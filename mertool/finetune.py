"""Stage `finetune`: adapters on the chosen layers of a speech encoder.

One adapter is trained per fold, without that fold's clips, and one (`final`) on all. So features of a
training clip can come from an adapter that never saw its label, and the scores reported here are of
held-out clips. The best epoch of each is chosen on a development part of its own training clips.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mertool import encoders, registry
from mertool.adapters import methods as peft_methods
from mertool.adapters.adapter import Adaptation, Method, Trained
from mertool.adapters.blocks import check_adaptable
from mertool.adapters.cross_validation import ADAPTERS, Job, Unfinished, held_out, plan_jobs, train_jobs
from mertool.adapters.data import CACHE, Clips, Progress, Wanted, choose_unlabelled, only, read_clips
from mertool.adapters.model import UNLABELLED
from mertool.adapters.trainer import Schedule
from mertool.devices import resolve_device, resolve_dtype
from mertool.encoders.hidden_states import find_blocks
from mertool.errors import MertoolError
from mertool.extraction.decoding import DecoderLimits
from mertool.extraction.plan import item_digest
from mertool.features import describe_layers, format_layers, parse_layers
from mertool.learning.accelerator import make_accelerator
from mertool.learning.folds import Folds, speaker_groups
from mertool.learning.folds_file import folds_key, folds_option, get_folds, write_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.manifest import Manifest
from mertool.metrics import mcnemar, paired_bootstrap, score_json
from mertool.options.finetune import FinetuneOptions
from mertool.predictions import Predictions
from mertool.runs import OPTIONS_NOT_IN_KEY, Run, RunDraft, cache_key, find_reusable_run, new_run

HELD_OUT = "held_out.csv"


NAMED = ("encoder", "folds")  # options that stand in a run's key by their content


@dataclass(frozen=True)
class _Plan:
    """Everything that is known before the long work."""

    source: encoders.CheckpointRef
    weights: str
    layers: tuple[int, ...]
    target_layer: int | None
    examples: LabelledClips
    manifest: Manifest
    device: torch.device
    dtype: torch.dtype


def finetune(manifest: Manifest, output: Path, options: FinetuneOptions, progress: Progress) -> tuple[Run, bool]:
    """Train the adapters; the run, and whether it was there already."""
    plan = _make_plan(manifest, options)
    key = _key(plan, manifest, options)
    if found := find_reusable_run(output, "finetune", key=key, options=options):
        return found, True
    # Faults show before the long work; which clips have no sound, and need no fold, shows after it.
    get_folds(options.folds, plan.examples, options.seed, complete=False)
    accelerator = make_accelerator(plan.device, plan.dtype)
    main = accelerator.is_main_process
    encoder = encoders.load("audio", plan.source, accelerator.device, torch.float32)
    check_adaptable(encoder)
    method = replace(_describe_adapter(options, plan.layers), size=_size(encoder.model, plan, options))
    clips = _read(plan, options, output.absolute().parent / CACHE, encoder, progress, accelerator)
    # Labelled clips come first, so that their rows are those of the examples.
    examples = plan.examples.select(np.isin(plan.examples.clips, clips.names))
    labels = np.full(len(clips.names), UNLABELLED)
    labels[: len(examples)] = examples.labels
    folds = get_folds(options.folds, examples, options.seed)
    jobs = plan_jobs(examples, folds, options.seed)
    adaptation = Adaptation(encoder, clips, labels, len(options.classes), method, not options.prefix_cache, accelerator)
    unfinished = Unfinished(output, key, main)
    accelerator.wait_for_everyone()
    before = sum(unfinished.read(job.name) is not None for job in jobs)
    title = f"adapters ({before} of {len(jobs)} were trained before)" if before else "adapters"
    with progress(title, "steps") as update:
        trained = list(train_jobs(adaptation, jobs, _schedule(options), unfinished, update))
    if main:
        _write(output, key, options, plan, adaptation, examples, folds, jobs, trained, unfinished)
        unfinished.clear()
    accelerator.wait_for_everyone()
    return Run.read(output, "finetune"), False


def compare(
    manifest: Manifest, output: Path, methods: tuple[str, ...], options: FinetuneOptions, progress: Progress
) -> tuple[Run, bool]:
    """Train several methods alike, each a run beside `output`, named after it; the run of their comparison."""
    made = {}
    for method in methods:
        # A method without a size has but one; the table says how many parameters that is.
        sized = registry.load(peft_methods.PACKAGE, "PEFT method", method).SIZE is not None
        chosen = replace(
            options, method=method, budget=options.budget if sized else None, size=options.size if sized else None
        )
        made[method], _ = finetune(manifest, output.with_name(f"{output.name}-{method}"), chosen, progress)
    key = cache_key("compare", {"budget": options.budget}, {"runs": [run.info["key"] for run in made.values()]})
    if found := find_reusable_run(output, "compare", key=key, options=options):
        return found, True
    if not make_accelerator(resolve_device(options.device), torch.float32).is_main_process:
        return Run(output, {}), False
    facts = {"seed": options.seed, "classes": list(options.classes)}
    with new_run(output, "compare", key=key, options=asdict(options), **facts) as draft:
        draft.metrics.update(_comparison(manifest, made, options))
        from mertool.plots import plot_score_bars

        bars = {"frozen": draft.metrics["frozen"]} | {
            name: scores["adapted"] for name, scores in draft.metrics["methods"].items()
        }
        title = f"Adapters on {describe_layers(draft.metrics['layers'])}, held-out clips"
        plot_score_bars(
            draft.folder / "methods", {name: tuple(score["waf"].values()) for name, score in bars.items()}, title
        )
    return Run.read(output, "compare"), False


def _comparison(manifest: Manifest, made: dict[str, Run], options: FinetuneOptions) -> dict[str, Any]:
    """Scores of every method, and paired tests against the one that scores best."""
    found = {method: Predictions.read(run.folder / HELD_OUT) for method, run in made.items()}
    first = next(iter(found.values()))
    examples = LabelledClips.from_manifest(manifest, options.classes)
    examples = examples.select(np.isin(examples.clips, first.clips))
    truth, groups, classes = examples.labels, speaker_groups(examples), len(options.classes)
    guesses = {method: predictions.probabilities.argmax(1) for method, predictions in found.items()}
    metrics = {method: run.metrics for method, run in made.items()}
    best = max(metrics, key=lambda method: metrics[method]["adapted"]["waf"]["value"])
    rows = {}
    for method, scores in metrics.items():
        rows[method] = {name: scores[name] for name in ("size", "trainable", "adapted", "gain")}
        rows[method]["share"] = scores["trainable"] / scores["parameters"]
        rows[method]["run"] = str(made[method].folder)
        if method != best:  # which is chosen on these very clips, so its lead is optimistic
            pair = (truth, guesses[best], guesses[method])
            rows[method]["against_best"] = paired_bootstrap(*pair, classes=classes, seed=options.seed, groups=groups)
            rows[method]["mcnemar"] = mcnemar(*pair)
    shared = {name: metrics[best][name] for name in ("clips", "folds", "interval", "layers", "frozen", "parameters")}
    return {**shared, "budget": options.budget, "best": best, "methods": rows}


def _make_plan(manifest: Manifest, options: FinetuneOptions) -> _Plan:
    device = resolve_device(options.device)
    source = encoders.find(options.encoder, "audio")
    blocks = encoders.count_layers(source)
    layers = parse_layers(options.layers, blocks)
    if min(layers) < 1:
        raise MertoolError(f"layer 0 is the embedding and cannot be adapted: give --layers within 1 to {blocks}")
    target_layer = None
    if options.mask_weight > 0 and options.mask_target != "logmel":
        # HuBERT learned the clusters of layer 9 of 12, and so did chinese-hubert-large.
        target_layer = options.target_layer if options.target_layer is not None else max(1, round(0.75 * blocks))
        if not 0 <= target_layer <= blocks:
            raise MertoolError(f"--target-layer {target_layer}: this encoder has layers 0 to {blocks}")
    examples = LabelledClips.from_manifest(manifest, options.classes)
    extra = choose_unlabelled(manifest, options.unlabelled if options.mask_weight > 0 else 0, options.seed)
    dtype = resolve_dtype(options.dtype, device)
    chosen = only(manifest, [*examples.clips, *extra])
    return _Plan(source, source.digest(), layers, target_layer, examples, chosen, device, dtype)


def _key(plan: _Plan, manifest: Manifest, options: FinetuneOptions) -> str:
    digests = [item_digest(clip, "audio") for clip in plan.manifest.clips]
    return cache_key(
        "finetune",
        {name: value for name, value in asdict(options).items() if name not in (*OPTIONS_NOT_IN_KEY, *NAMED)}
        | {"folds": folds_option(options.folds)},
        {
            "weights": plan.weights,
            "clips": digests,
            "manifest": manifest.digest(),
            "folds": folds_key(options.folds),
            "dtype": str(plan.dtype),
        },
    )


def _schedule(options: FinetuneOptions) -> Schedule:
    """Return how adapters are trained; the learning rate is the method's own where none is given."""
    rate = options.learning_rate
    if rate is None:
        rate = float(registry.load(peft_methods.PACKAGE, "PEFT method", options.method).RATE)
    return Schedule(options.epochs, options.batch, rate, patience=options.patience, seed=options.seed)


def _describe_adapter(options: FinetuneOptions, layers: tuple[int, ...]) -> Method:
    return Method(
        options.method,
        options.size,
        layers,
        options.mask_weight,
        options.mask_target,
        options.class_weights,
        options.label_smoothing,
    )


def _size(model: Any, plan: _Plan, options: FinetuneOptions) -> int | None:
    """The size of the adapters: as given, by the budget, or the method's default."""
    if options.budget is not None:
        blocks = find_blocks(model, encoders.count_layers(plan.source))
        return peft_methods.size_for_budget(model, blocks, plan.layers, options.method, options.budget)
    return options.size or registry.load(peft_methods.PACKAGE, "PEFT method", options.method).SIZE


def _read(
    plan: _Plan, options: FinetuneOptions, cache: Path, encoder: Any, progress: Progress, accelerator: Any
) -> Clips:
    """What training starts from; the first process extracts what is missing, the others wait and read."""
    wanted = Wanted(
        plan.source,
        plan.weights,
        (min(plan.layers) - 1,),
        plan.target_layer,
        options.mask_weight > 0 and options.mask_target == "logmel",
        not options.prefix_cache,
        plan.dtype,
        accelerator.device,
        DecoderLimits(options.workers, options.clip_timeout),
    )
    with accelerator.main_process_first():
        clips = read_clips(plan.manifest, wanted, cache, encoder, progress)
    labelled = set(plan.examples.clips)
    order = sorted(range(len(clips.names)), key=lambda row: clips.names[row] not in labelled)
    if clips.names[order[0]] not in labelled:
        raise MertoolError(f"none of the {len(labelled)} labelled clips of {plan.manifest.source} has readable sound")
    return clips.reordered(order)


def _write(
    output: Path,
    key: str,
    options: FinetuneOptions,
    plan: _Plan,
    adaptation: Adaptation,
    examples: LabelledClips,
    folds: Folds,
    jobs: list[Job],
    trained: list[Trained],
    unfinished: Unfinished,
) -> None:
    """Put the run in place: adapters, scores before and after, plots."""
    folds_json, labelled = folds.to_json(examples), set(plan.examples.clips)
    with new_run(
        output,
        "finetune",
        key=key,
        options={**asdict(options), "size": adaptation.method.size},
        seed=options.seed,
        classes=list(options.classes),
        encoder={**plan.source.to_json(), "weights": plan.weights},
        layers=list(plan.layers),
        folds=folds_json,
        adapter_of_clip={clip: f"fold{fold}" for clip, fold in folds_json.items()},
    ) as draft:
        (unfinished.adapters).rename(draft.folder / ADAPTERS)
        write_folds(draft.folder / "folds.csv", examples, folds)
        draft.metrics.update(
            {
                "clips": len(examples),
                "unlabelled": len(adaptation.lengths) - len(examples),
                "skipped": {clip: reason for clip, reason in adaptation.clips.skipped.items() if clip in labelled},
                "folds": folds.description,
                "interval": "speakers" if speaker_groups(examples) is not None else "clips",
                "method": options.method,
                "size": adaptation.method.size,
                "layers": format_layers(plan.layers),
                "trainable": trained[-1].trainable,
                "parameters": adaptation.parameters,
                **_scores(examples, jobs, trained, adaptation.window, options),
                "history": {job.name: asdict(found.history) for job, found in zip(jobs, trained, strict=True)},
            }
        )
        _write_held_out(draft, examples, jobs, trained, options)
        _draw(draft, adaptation.window)


def _scores(
    examples: LabelledClips, jobs: list[Job], trained: list[Trained], window: tuple[int, ...], options: FinetuneOptions
) -> dict[str, Any]:
    """Scores of held-out clips before and after adaptation, of the head and of a probe of every block."""
    classes, seed, groups = len(options.classes), options.seed, speaker_groups(examples)
    guesses = {name: held_out(jobs, trained, name).argmax(-1) for name in ("frozen", "adapted")}
    scores: dict[str, Any] = {
        name: score_json(examples.labels, guess, classes, seed=seed, groups=groups) for name, guess in guesses.items()
    }
    layers = {}
    cka = np.mean([found.cka for found, job in zip(trained, jobs, strict=True) if len(job.part.held_out)], axis=0)
    before, after = (held_out(jobs, trained, f"layers_{name}").argmax(-1) for name in ("frozen", "adapted"))
    for number, layer in enumerate(window):
        layers[str(layer)] = {
            "frozen": score_json(examples.labels, before[number], classes, seed=seed, groups=groups),
            "adapted": score_json(examples.labels, after[number], classes, seed=seed, groups=groups),
            "gain": paired_bootstrap(
                examples.labels, before[number], after[number], classes=classes, seed=seed, groups=groups
            ),
            "cka": float(cka[number]),
        }
    # Partly the head's, which went on learning from its probe; what the features gained is told by `layers`.
    gain = paired_bootstrap(
        examples.labels, guesses["frozen"], guesses["adapted"], classes=classes, seed=seed, groups=groups
    )
    return {**scores, "gain": gain, "probes": layers}


def _write_held_out(
    draft: RunDraft, examples: LabelledClips, jobs: list[Job], trained: list[Trained], options: FinetuneOptions
) -> None:
    logits = torch.from_numpy(held_out(jobs, trained, "adapted"))
    present = tuple(("audio",) for _ in examples.clips)
    predictions = Predictions(examples.clips, options.classes, logits.softmax(1).numpy().astype(np.float64), present)
    predictions.write(draft.folder / HELD_OUT)


def _draw(draft: RunDraft, window: tuple[int, ...]) -> None:
    from mertool.plots import plot_adaptation, plot_training_losses

    metrics = draft.metrics
    title = f"{metrics['method']} on {describe_layers(metrics['layers'])}"
    losses = {
        name: (history["label_loss"], [history["start_loss"], *history["development_loss"]], history["best_epoch"])
        for name, history in metrics["history"].items()
    }
    plot_training_losses(draft.folder / "losses", losses, title)
    plot_adaptation(draft.folder / "layers", list(window), metrics["probes"], title)

"""Stage `probe-layers`: how well each layer of a pooled store predicts emotion, and which layers to adapt.

Every layer is probed by linear classifiers, of a number by ridge regression, and by small multilayer perceptrons, all
under the same folds, and one model learns weights for all layers. Permuted labels measure chance. Where speakers are
known, a probe for them measures how well they can be told apart. Layer n is the output of transformer block n, counted
from 1; layer 0 is the embedding.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mertool.devices import resolve_device
from mertool.errors import MertoolError
from mertool.extraction.progress import ProgressFactory
from mertool.features import Recipe, describe_layers, is_provenance
from mertool.learning.folds import Folds, warn_of_rare_classes
from mertool.learning.folds_file import folds_key, folds_option, get_folds, write_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.manifest import Manifest
from mertool.options.probe_layers import ProbeLayersOptions
from mertool.probing.evaluation import evaluate_probes
from mertool.probing.probes import ProbePlan, probe_all
from mertool.probing.progress import ProgressSpan
from mertool.probing.window import Window, max_width
from mertool.runs import Run, cache_key, find_reusable_run, new_run
from mertool.store import FeatureStore
from mertool.targets import Target, make_target

SIGNIFICANCE = 0.05  # p below which the ablation overrules the probes


@dataclass(frozen=True, kw_only=True)
class _ProbeInput:
    """Everything that the stage reads from a store.

    Attributes:
        examples: Labelled clips with features.
        folds: Folds of the first repetition.
        layers: Layer numbers (L,).
        values: Features (N, L, D).
        recipe: Recipe of the store.
        provenance: Encoder and extraction of the store.
    """

    examples: LabelledClips
    folds: Folds
    layers: list[int]
    values: np.ndarray
    recipe: Recipe
    provenance: dict[str, Any]


def probe_layers(
    store_path: Path, manifest: Manifest, output: Path, *, options: ProbeLayersOptions, progress: ProgressFactory
) -> tuple[Run, bool]:
    """Cross-validate probes of every layer and recommend a window; return the run, and whether it was reused.

    Raises MertoolError if the store holds frames or no transformer layer, or if an option does not suit it.
    """
    started = time.time()
    with FeatureStore(store_path) as store:
        if not store.pooled:
            raise MertoolError(f"{store_path} holds frames: probe-layers reads a pooled store (--pool mean)")
        key = _cache_key(store, manifest, options)
        if run := find_reusable_run(
            output, "probe-layers", key=key, options=options, inputs=[store_path, manifest.source]
        ):
            return run, True
        inputs = _read_input(store, manifest, options)
    examples = inputs.examples
    plan = _make_plan(inputs, options)
    target = plan.target
    rare_classes = warn_of_rare_classes(examples, plan.partitions, target.classes)
    with progress("probe-layers", "%") as update:
        results = probe_all(inputs.values, examples, plan, progress=ProgressSpan(update))
    metrics, window = evaluate_probes(results, plan, examples, layers=inputs.layers, width=options.width)
    if options.injection:
        cache_parent = output.absolute().parent
        metrics["injection"] = _ablate_windows(
            inputs, manifest, window, options=options, cache_parent=cache_parent, progress=progress
        )
        window = _adopt_ablation(metrics, window)
    speakers = dict(zip(examples.clips, examples.speakers, strict=True)) if results.groups is not None else None
    with new_run(
        output,
        "probe-layers",
        key=key,
        options=asdict(options),
        sources={
            "manifest": manifest.source,
            "stores": store_path,
            "folds": options.folds if isinstance(options.folds, Path) else None,
        },
        started=started,
        seed=options.seed,
        target=target.name,
        classes=list(target.classes),
        folds=inputs.folds.to_json(examples),
        speakers=speakers,
        window=[window.first, window.last] if window else None,
        recipe=inputs.recipe.to_json(),
        origin=inputs.provenance,
    ) as draft:
        draft.metrics.update(metrics, rare_classes=rare_classes)
        write_folds(draft.folder / "folds.csv", examples, inputs.folds)
        _plot(draft.folder, metrics, inputs.layers, target=target, window=window)
    return Run.read(output, "probe-layers"), False


def _cache_key(store: FeatureStore, manifest: Manifest, options: ProbeLayersOptions) -> str:
    """Return the key of the run: everything that its result depends on."""
    inputs = {
        "folds": folds_key(options.folds),
        "store": [store.fingerprint, store.digests()],
        "manifest": manifest.digest(),
    }
    return cache_key("probe-layers", options.affecting_result() | {"folds": folds_option(options.folds)}, inputs)


def _read_input(store: FeatureStore, manifest: Manifest, options: ProbeLayersOptions) -> _ProbeInput:
    """Check the options against the store, and read the features of the labelled clips."""
    examples = LabelledClips.from_manifest(manifest, make_target(options.target, options.classes))
    examples = examples.select(examples.present_in(store))
    folds = get_folds(options.folds, examples, options.seed)
    if max(store.layers) < 1:
        raise MertoolError(f"{store.path} holds layer 0 only: extract with --layers all")
    n_blocks = sum(layer >= 1 for layer in store.layers)
    if options.width is not None and options.width > n_blocks:
        raise MertoolError(
            f"--width {options.width}: {store.path} holds {n_blocks} transformer layers, give at most {n_blocks}"
        )
    if options.injection and (store.recipe.modality != "audio" or store.recipe.adapter):
        raise MertoolError(
            f"--injection trains adapters of a frozen speech encoder: {store.path} holds no such features"
        )
    if options.injection and not (is_provenance(store.provenance) and store.provenance.get("encoder")):
        raise MertoolError(f"--injection: {store.path} does not say where its encoder is: extract it again")
    return _ProbeInput(
        examples=examples,
        folds=folds,
        layers=list(store.layers),
        values=store.read(examples.clips),
        recipe=store.recipe,
        provenance=store.provenance,
    )


def _make_plan(inputs: _ProbeInput, options: ProbeLayersOptions) -> ProbePlan:
    """Give every repetition a seed and, unless the folds are those of a file, folds of its own."""
    target = make_target(options.target, options.classes)
    seeds = [options.seed + number for number in range(options.seeds)]
    if isinstance(options.folds, Path):
        repetitions = [inputs.folds] * len(seeds)
    else:
        more = (get_folds(options.folds, inputs.examples, seed) for seed in seeds[1:])
        repetitions = [inputs.folds, *more]
    return ProbePlan(
        repetitions=repetitions,
        seeds=seeds,
        target=target,
        estimator=options.estimator if target.classes else "ridge",
        mlp=options.mlp,
        device=resolve_device(options.device),
    )


def _ablate_windows(
    inputs: _ProbeInput,
    manifest: Manifest,
    window: Window | None,
    *,
    options: ProbeLayersOptions,
    cache_parent: Path,
    progress: ProgressFactory,
) -> list[dict[str, Any]]:
    """Train a short adapter in each of several windows of the recommended width; return their scores, best first.

    Without a recommended window they have the width that is asked for, else the largest one.
    """
    # Imported here, because encoders take seconds to load and plain probes need none.
    from mertool.adapters.data import CACHE_FOLDER
    from mertool.adapters.window_ablation import ablate_windows, candidate_windows

    n_blocks = max(inputs.layers)
    if window:
        windows = candidate_windows(n_blocks, window.last - window.first + 1, (window.first, window.last))
    else:
        windows = candidate_windows(n_blocks, options.width or max_width(n_blocks))
    return ablate_windows(
        manifest,
        windows,
        examples=inputs.examples,
        folds=inputs.folds,
        checkpoint=inputs.provenance["encoder"]["checkpoint"],
        weights=inputs.recipe.weights,
        n_classes=len(options.classes),
        seed=options.seed,
        device=options.device,
        cache=cache_parent / CACHE_FOLDER,
        progress=progress,
    )


def _adopt_ablation(metrics: dict[str, Any], window: Window | None) -> Window | None:
    """Return the window that the probes recommend, if any, or one where an adapter is significantly better."""
    if window is None:
        return None
    best = metrics["injection"][0]
    recommended = next(row for row in metrics["injection"] if row["window"] == [window.first, window.last])
    # The best of the other windows was chosen by these scores, so its lead is corrected for their number (Bonferroni).
    n_others = len(metrics["injection"]) - 1
    if best is recommended or n_others * recommended["against_best"]["p"] >= SIGNIFICANCE:
        return window
    probed = metrics["window"]["layers"]
    reason = f"adapters there score best after a short training; probes score best in {describe_layers(probed)}"
    metrics["window"] |= {"layers": best["layers"], "reason": reason, "read_out": probed}
    first, last = best["window"]
    return Window(first, last, reason)


def _plot(folder: Path, metrics: dict[str, Any], layers: list[int], *, target: Target, window: Window | None) -> None:
    """Write the pictures of the run: scores by layer, of classes also recall, and the ablated windows if any."""
    from mertool.plots import plot_layer_scores, plot_recall_by_layer, plot_score_bars

    main = target.measure.main

    def main_scores(probe: str | None) -> dict[str, tuple[float, float | None, float | None]]:
        """Main score of each layer with its interval, by a probe that metrics.json names, or by the linear one."""
        rows = {layer: (scores[probe] if probe else scores)[main] for layer, scores in metrics["layers"].items()}
        return {layer: (score["value"], score["low"], score["high"]) for layer, score in rows.items()}

    has_intervals = metrics["chance"][main]["low"] is not None
    span = (window.first, window.last) if window else None
    plot_layer_scores(
        folder / "layers",
        layers,
        main_scores(None),
        window=span,
        chance=main_scores("control"),
        mlp=main_scores("mlp") if "mlp" in metrics["layers"][str(layers[0])] else None,
        interval=f"95 % intervals over {metrics['intervals']}" if has_intervals else "no intervals: few speakers",
        number="" if target.classes else target.name,
    )
    if target.classes:
        recall = {layer: scores["recall"] for layer, scores in metrics["layers"].items()}
        plot_recall_by_layer(folder / "recall", layers, recall, window=span)
    if "injection" in metrics:
        bars = {describe_layers(row["layers"]): tuple(row["waf"].values()) for row in metrics["injection"]}
        plot_score_bars(folder / "injection", bars, title="A short adapter in each window, held-out clips")

"""Stage `probe-layers`: how well each layer of a pooled store tells the emotions apart, and which to adapt.

Every layer is read by linear probes and by small multilayer perceptrons, all under the same folds; one model
learns weights for all layers; shuffled labels measure chance, and where speakers are known a probe for them
measures what leaks. Layer n is the output of transformer block n, counted from 1; layer 0 is the embedding.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mertool.devices import resolve_device
from mertool.errors import MertoolError
from mertool.features import describe_layers, format_layers
from mertool.learning.folds import Folds
from mertool.learning.folds_file import folds_key, folds_option, get_folds, write_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.manifest import Manifest
from mertool.metrics import confusion_matrix, per_class_scores, score_json
from mertool.options.probe_layers import ProbeLayersOptions
from mertool.probing.probes import Plan, Probed, probe_all
from mertool.probing.speakers import SpeakerReadout
from mertool.probing.window import Window, choose_by_guess, nested_windows, window_guess
from mertool.runs import Run, cache_key, find_reusable_run, new_run
from mertool.store import FeatureStore

if TYPE_CHECKING:
    from mertool.adapters.data import ProgressFactory

CERTAIN = 0.05


def probe_layers(
    store_path: Path, manifest: Manifest, output: Path, options: ProbeLayersOptions, progress: "ProgressFactory"
) -> tuple[Run, bool]:
    """Cross-validate probes of every layer and recommend a window; the run, and whether it was reused."""
    with FeatureStore(store_path) as store:
        if not store.pooled:
            raise MertoolError(f"{store_path} holds frames: probe-layers reads a pooled store (--pool mean)")
        key = cache_key(
            "probe-layers",
            options.affecting_result() | {"folds": folds_option(options.folds)},
            {
                "folds": folds_key(options.folds),
                "store": [store.fingerprint, store.digests()],
                "manifest": manifest.digest(),
            },
        )
        if found := find_reusable_run(output, "probe-layers", key=key, options=options):
            return found, True
        examples = LabelledClips.from_manifest(manifest, options.classes)
        examples = examples.select(examples.present_in(store))
        folds = get_folds(options.folds, examples, options.seed)
        layers, facts = list(store.layers), {"recipe": store.recipe.to_json(), "origin": store.provenance}
        if max(layers) < 1:
            raise MertoolError(f"{store_path} holds layer 0 alone: extract with --layers all")
        blocks = sum(layer >= 1 for layer in layers)
        if options.width is not None and options.width > blocks:
            raise MertoolError(
                f"--width {options.width}: {store_path} holds {blocks} transformer layers, give at most so many"
            )
        if options.injection and (store.recipe.modality != "audio" or store.recipe.adapter):
            raise MertoolError(
                f"--injection trains adapters of a frozen speech encoder: {store_path} holds no such features"
            )
        values, recipe, checkpoint = store.read(examples.clips), store.recipe, store.provenance["encoder"]["checkpoint"]
    plan = _plan(folds, examples, options)
    with progress("probe-layers", "%") as update:
        probed = probe_all(values, examples, plan, update)
    metrics, window = _judge(probed, plan, examples, layers, options)
    if options.injection:
        # Encoders take seconds to load, and plain probes need none.
        from mertool.adapters.data import CACHE_FOLDER
        from mertool.adapters.window_ablation import WindowAblationConfig, ablate_windows, candidate_windows

        config = WindowAblationConfig(
            recipe=recipe,
            checkpoint=checkpoint,
            n_classes=plan.classes,
            seed=options.seed,
            device=options.device,
            cache=output.absolute().parent / CACHE_FOLDER,
        )
        windows = candidate_windows(max(layers), window.last - window.first + 1, (window.first, window.last))
        metrics["injection"] = ablate_windows(
            manifest, windows, examples=examples, folds=folds, config=config, progress=progress
        )
        window = _weigh_injection(metrics, window)
    with new_run(
        output,
        "probe-layers",
        key=key,
        options=asdict(options),
        seed=options.seed,
        classes=list(options.classes),
        folds=folds.to_json(examples),
        speakers=dict(zip(examples.clips, examples.speakers, strict=True)) if probed.groups is not None else None,
        window=[window.first, window.last],
        **facts,
    ) as draft:
        draft.metrics.update(metrics)
        write_folds(draft.folder / "folds.csv", examples, folds)
        _draw(draft.folder, metrics, layers, window, options)
    return Run.read(output, "probe-layers"), False


def _weigh_injection(metrics: dict[str, Any], window: Window) -> Window:
    """The window that reads out best, or the one where an adapter is certainly better (p < 0.05)."""
    best = metrics["injection"][0]
    read_out = next(one for one in metrics["injection"] if one["window"] == [window.first, window.last])
    if best is read_out or read_out["against_best"]["p"] >= CERTAIN:
        return window
    read_best = metrics["window"]["layers"]
    reason = f"adapters there score best after a short training; {describe_layers(read_best)} read out best"
    metrics["window"]["read_out"] = read_best
    metrics["window"] |= {"layers": best["layers"], "reason": reason}
    first, last = best["window"]
    return Window(first, last, reason)


def _plan(folds: Folds, examples: LabelledClips, options: ProbeLayersOptions) -> Plan:
    """Every repetition shuffles the folds anew, unless they were given."""
    seeds = [options.seed + number for number in range(options.seeds)]
    given = isinstance(options.folds, Path)
    members = [folds, *(folds if given else get_folds(options.folds, examples, seed) for seed in seeds[1:])]
    device = resolve_device(options.device)
    return Plan(members, seeds, len(options.classes), options.estimator, options.mlp, device)


def _judge(
    probed: Probed, plan: Plan, examples: LabelledClips, layers: list[int], options: ProbeLayersOptions
) -> tuple[dict[str, Any], Window]:
    """The scores, as metrics.json holds them, and the recommended window."""
    labels, classes, groups, linear = examples.labels, plan.classes, probed.groups, probed.linear

    def scored(truth: np.ndarray, guess: np.ndarray) -> dict[str, Any]:
        return score_json(truth, guess, classes, seed=options.seed, groups=groups)

    guess = linear.logits.argmax(-1)  # (S, L, N)
    by_layer: dict[str, dict[str, Any]] = {}
    for place, layer in enumerate(layers):
        matrix = confusion_matrix(labels, guess[:, place], classes).sum(0)
        by_layer[str(layer)] = {
            **scored(labels, guess[:, place]),
            "recall": {
                row["class"]: row["recall"] for row in per_class_scores(matrix, options.classes) if row["clips"]
            },
            "penalties": linear.chosen[:, :, place].tolist(),
            "control": scored(probed.shuffled, linear.control[:, place].argmax(-1)),
        }
        if probed.mlp is not None:
            by_layer[str(layer)]["mlp"] = scored(labels, probed.mlp[:, place])
    window = choose_by_guess(layers, labels, guess, classes, options.width, groups, options.seed)
    nested, picks = [], []
    for number, folds in enumerate(plan.shuffles):
        windows = nested_windows(
            layers, labels, folds, linear.inner[number], guess[number], classes, options.width, groups, options.seed
        )
        nested.append(window_guess(layers, folds, linear.logits[number], windows, plan.estimator))
        picks.append([[choice.first, choice.last] for choice in windows])
    inner = plan.members[0].count > 2
    metrics = {
        "clips": len(examples),
        "folds": plan.members[0].description,
        "seeds": len(plan.seeds),
        "shuffles": len(plan.shuffles),
        "intervals": "speakers" if groups is not None else "clips",
        "estimator": plan.estimator,
        "penalty": (
            "chosen for each layer and fold by inner folds without the fold's clips" if inner else "fixed: two folds"
        ),
        "nested": inner,
        "unsolved": linear.unsolved,
        "layers": by_layer,
        # Means over the layers, of the values and of the bounds.
        "chance": _mean_scores([scores["control"] for scores in by_layer.values()]),
        "window": {
            "layers": format_layers(list(range(window.first, window.last + 1))),
            "reason": window.reason,
            "choice": (
                "for each fold by probes that saw neither its clips nor those they were judged on"
                if inner
                else "for each fold by the other fold, whose probes saw its clips: two folds cannot be nested"
            ),
            "chosen_by_fold": picks,
            **scored(labels, np.stack(nested)),
        },
        "layer_weights": {
            "mean": dict(zip(map(str, layers), probed.weights.mean(0).tolist(), strict=True)),
            "deviation": dict(zip(map(str, layers), probed.weights.std(0).tolist(), strict=True)),
            **scored(labels, probed.weighed),
        },
    }
    if probed.speakers is not None:
        metrics["speakers"] = _judge_speakers(probed.speakers, layers, options.seed)
    return metrics, window


def _mean_scores(scores: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        name: {part: float(np.mean([one[name][part] for one in scores])) for part in ("value", "low", "high")}
        for name in scores[0]
    }


def _judge_speakers(found: SpeakerReadout, layers: list[int], seed: int) -> dict[str, Any]:
    """Accuracy of telling speakers apart by layer, and on shuffled speakers; intervals over clips."""

    def accuracy(truth: np.ndarray, guess: np.ndarray) -> dict[str, float]:
        right = (truth == guess).astype(np.int64)
        return score_json(np.ones_like(right), right, 2, seed=seed)["accuracy"]

    chance = [accuracy(found.shuffled, guess) for guess in found.control]
    return {
        "speakers": len(np.unique(found.truth)),
        "clips": len(found.rows),
        "largest": float(np.bincount(found.truth).max() / len(found.truth)),
        "chance": {part: float(np.mean([one[part] for one in chance])) for part in ("value", "low", "high")},
        "layers": {str(layer): accuracy(found.truth, guess) for layer, guess in zip(layers, found.guess, strict=True)},
    }


def _draw(
    folder: Path, metrics: dict[str, Any], layers: list[int], window: Window, options: ProbeLayersOptions
) -> None:
    from mertool.plots import plot_layer_scores, plot_recall_by_layer, plot_score_bars

    def bars(head: str | None) -> dict[str, tuple[float, float, float]]:
        found = {layer: (scores[head] if head else scores)["waf"] for layer, scores in metrics["layers"].items()}
        return {layer: (waf["value"], waf["low"], waf["high"]) for layer, waf in found.items()}

    span, mlp = (window.first, window.last), bars("mlp") if options.mlp else None
    over = f"95 % intervals over {metrics['intervals']}"
    plot_layer_scores(folder / "layers", layers, bars(None), span, bars("control"), mlp, over)
    recall = {layer: scores["recall"] for layer, scores in metrics["layers"].items()}
    plot_recall_by_layer(folder / "recall", layers, recall, span)
    if "injection" in metrics:
        windows = {describe_layers(one["layers"]): tuple(one["waf"].values()) for one in metrics["injection"]}
        plot_score_bars(folder / "injection", windows, "A short adapter in each window, held-out clips")

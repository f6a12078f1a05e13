"""Stage `probe-layers`: how well each layer of a pooled store tells the emotions apart."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mertool.devices import resolve_device
from mertool.errors import MertoolError
from mertool.features import format_layers
from mertool.manifest import EMOTIONS, Manifest
from mertool.metrics import confusion, score_json, scores_of
from mertool.runs import Run, make_key, new_run, reuse
from mertool.store import FeatureStore
from mertool.training.examples import Examples, keep, labelled_examples, present_in
from mertool.training.folds import Folds, make_folds
from mertool.training.linear import cross_validate


@dataclass(frozen=True)
class ProbeOptions:
    """folds: parts of the cross-validation. width: layers in the recommended window (None: a quarter)."""

    folds: int = 5
    width: int | None = None
    seed: int = 0
    device: str = "auto"
    classes: tuple[str, ...] = EMOTIONS
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.width is not None and self.width < 1:
            raise MertoolError(f"a window of {self.width} layers: give --width 1 or more")


def probe_layers(
    store_path: Path, manifest: Manifest, output: Path, options: ProbeOptions, progress: Callable[[int, int], None]
) -> tuple[Run, bool]:
    """Cross-validate a linear probe on every layer and recommend a window; the run, and whether it was reused."""
    with FeatureStore(store_path) as store:
        if not store.pooled:
            raise MertoolError(f"{store_path} holds frames: probe-layers reads a pooled store (--pool mean)")
        key = make_key(
            "probe-layers",
            {k: v for k, v in asdict(options).items() if k not in ("device", "overwrite")},
            {"store": [store.fingerprint, store.digests()], "manifest": manifest.digest()},
        )
        if found := reuse(output, "probe-layers", key, options.overwrite):
            return found, True
        examples = labelled_examples(manifest, options.classes)
        examples = keep(examples, present_in(store, examples))
        folds = make_folds(examples, options.folds, options.seed)
        values = store.read(examples.clips)
        layers, facts = list(store.layers), {"recipe": store.recipe.to_json(), "origin": store.origin}
    if max(layers) < 1:
        raise MertoolError(f"{store_path} holds layer 0 alone: extract with --layers all")
    probed = _probe(values, examples, folds, options, progress)
    width = options.width or max(1, round(max(layers) / 4))
    window = best_window(layers, probed.waf_by_layer(), width)
    with new_run(
        output,
        "probe-layers",
        key,
        asdict(options),
        seed=options.seed,
        classes=list(options.classes),
        folds=folds.to_json(examples),
        window=list(window),
        **facts,
    ) as draft:
        draft.metrics.update(_metrics(probed, examples, folds, layers, window, options))
        from mertool.plots import layer_curve

        curve = {name: tuple(scores["waf"].values()) for name, scores in draft.metrics["layers"].items()}
        layer_curve(draft.folder / "layers", layers, curve, window, draft.metrics["chance"]["waf"]["value"])
    return Run.read(output, "probe-layers"), False


def best_window(layers: list[int], wafs: np.ndarray, width: int) -> tuple[int, int]:
    """First and last of the `width` neighbouring transformer layers with the highest mean WAF."""
    blocks = [(layer, waf) for layer, waf in zip(layers, wafs, strict=True) if layer >= 1]
    width = min(width, len(blocks))
    means = [np.mean([waf for _, waf in blocks[i : i + width]]) for i in range(len(blocks) - width + 1)]
    start = int(np.argmax(means))
    return blocks[start][0], blocks[start + width - 1][0]


@dataclass(frozen=True)
class Probed:
    """Out-of-fold logits (L, N, C) of every layer's probe, and of one trained on shuffled labels (N, C)."""

    labels: np.ndarray
    logits: np.ndarray
    shuffled_labels: np.ndarray
    shuffled_logits: np.ndarray

    def waf_by_layer(self, rows: np.ndarray | None = None) -> np.ndarray:
        """WAF (L,) of each layer, over all clips or some."""
        chosen = np.arange(len(self.labels)) if rows is None else rows
        guess = self.logits[:, chosen].argmax(-1)
        truth = np.broadcast_to(self.labels[chosen], guess.shape)
        return scores_of(confusion(truth, guess, self.logits.shape[-1]))["waf"]


def _probe(
    values: np.ndarray, examples: Examples, folds: Folds, options: ProbeOptions, progress: Callable[[int, int], None]
) -> Probed:
    device, classes = resolve_device(options.device), len(options.classes)
    logits = []
    for number in range(values.shape[1]):
        logits.append(cross_validate(values[:, number], examples.labels, folds.of, classes, device))
        progress(number + 1, values.shape[1])
    shuffled = np.random.default_rng(options.seed).permutation(examples.labels)
    control = cross_validate(values[:, -1], shuffled, folds.of, classes, device)
    return Probed(examples.labels, np.stack(logits), shuffled, control)


def _window_guess(probed: Probed, folds: Folds, layers: list[int], width: int) -> np.ndarray:
    """Class (N,) of each clip by the mean probability over a window that was chosen on the other folds."""
    shifted = np.exp(probed.logits - probed.logits.max(-1, keepdims=True))
    probabilities = shifted / shifted.sum(-1, keepdims=True)
    guess = np.zeros(len(probed.labels), np.int64)
    for fold in range(folds.count):
        first, last = best_window(layers, probed.waf_by_layer(folds.train(fold)), width)
        inside = [number for number, layer in enumerate(layers) if first <= layer <= last]
        rows = folds.held_out(fold)
        guess[rows] = probabilities[inside][:, rows].mean(0).argmax(-1)
    return guess


def _metrics(
    probed: Probed, examples: Examples, folds: Folds, layers: list[int], window: tuple[int, int], options: ProbeOptions
) -> dict[str, Any]:
    classes = len(options.classes)

    def scored(labels: np.ndarray, guess: np.ndarray) -> dict[str, Any]:
        return score_json(labels, guess, classes, options.seed)

    width = window[1] - window[0] + 1
    return {
        "clips": len(examples),
        "folds": folds.kind,
        "layers": {
            str(layer): scored(probed.labels, logits.argmax(-1))
            for layer, logits in zip(layers, probed.logits, strict=True)
        },
        "chance": scored(probed.shuffled_labels, probed.shuffled_logits.argmax(-1)),
        "window": {
            "layers": format_layers(list(range(window[0], window[1] + 1))),
            "reason": f"highest mean weighted F1 of {width} neighbouring layers",
            # Chosen fold by fold on the other folds, so that no clip scores a choice it took part in.
            **scored(probed.labels, _window_guess(probed, folds, layers, width)),
        },
    }

"""Window ablation: a short training of an adapter in each of several windows of layers, at equal size.

The layer whose probe scores best need not be the one where an adapter helps most, so this ranking stands beside the
probes of frozen layers (`probe-layers --injection`).
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mertool import encoders
from mertool.adapters.cross_validation import AdapterSplit, adapter_splits, join_held_out
from mertool.adapters.data import AdaptationDataSpec, read_adaptation_data
from mertool.adapters.evaluation import AdapterResult, HeldOutScorer, evaluate_adapter
from mertool.adapters.layer_probes import FrozenProbes
from mertool.adapters.setup import AdapterConfig, AdapterSetup, prepare
from mertool.adapters.trainer import TrainingProgress, train_adapter
from mertool.devices import resolve_device, resolve_dtype
from mertool.errors import MertoolError
from mertool.extraction.decoding import DecoderLimits
from mertool.extraction.progress import ProgressFactory
from mertool.features import format_layers
from mertool.learning.accelerator import make_accelerator
from mertool.learning.folds import Folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.manifest import Manifest
from mertool.significance import adjust_by_holm

EPOCHS = 4

# Of every window; layers and seed are added.
CONFIG = AdapterConfig(method="lora", size=8, layers=(), mask_weight=0.0, epochs=EPOCHS, learning_rate=1e-3)


def candidate_windows(n_blocks: int, width: int, *recommended: tuple[int, int]) -> list[tuple[int, int]]:
    """Return adjacent windows of `width` layers from the last layer down, and those that the probes recommend.

    >>> candidate_windows(12, 4, (7, 10))
    [(1, 4), (5, 8), (7, 10), (9, 12)]
    """
    tiles = {(last - width + 1, last) for last in range(n_blocks, width - 1, -width)}
    return sorted(tiles | set(recommended))


def ablate_windows(
    manifest: Manifest,
    windows: Sequence[tuple[int, int]],
    *,
    examples: LabelledClips,
    folds: Folds,
    checkpoint: str,
    weights: str,
    n_classes: int,
    seed: int,
    device: str,
    cache: Path,
    progress: ProgressFactory,
) -> list[dict[str, Any]]:
    """Return held-out scores of a short adaptation of each window, best first, with paired tests against the best.

    `checkpoint` is the encoder of the probed store and `weights` their digest; frames of frozen layers are kept in
    `cache`. Raises MertoolError if the encoder is no longer the probed one.
    """
    source = encoders.resolve_encoder(checkpoint, "audio")
    if source.digest() != weights:
        raise MertoolError(f"{source.folder} is no longer the encoder of the probed store: extract the store again")
    target_device = resolve_device(device)
    dtype = resolve_dtype("auto", target_device)
    accelerator = make_accelerator(target_device, dtype)
    spec = AdaptationDataSpec(
        checkpoint=source,
        weights=weights,
        blocks=tuple(sorted({first - 1 for first, _ in windows})),
        dtype=dtype,
        device=target_device,
        limits=DecoderLimits(),
    )
    clips = manifest.subset(examples.clips)
    encoder = encoders.load_encoder(source, "audio", device=target_device, dtype=torch.float32)
    encoder.adaptable()  # raises before the long work
    data = read_adaptation_data(clips, spec, cache=cache, encoder=encoder, progress=progress)
    has_audio = np.isin(examples.clips, data.names)
    examples = examples.select(has_audio)
    folds = replace(folds, fold_of=folds.fold_of[has_audio])
    splits = adapter_splits(folds, final=False)
    results = {}
    with progress("injection", "steps") as update:
        training = TrainingProgress(update, total=len(windows) * sum(map(CONFIG.count_steps, splits)))
        for first, last in windows:
            setup = prepare(
                # A copy for each window: `prepare` removes the layers that a window does not need.
                deepcopy(encoder),
                data,
                examples.labels,
                n_classes=n_classes,
                config=replace(CONFIG, layers=tuple(range(first, last + 1)), seed=seed),
                from_frontend=False,
                accelerator=accelerator,
            )
            results[first, last] = _train_splits(setup, splits, training)
    scorer = HeldOutScorer(examples=examples, n_classes=n_classes)
    return _rank(results, splits, scorer)


def _train_splits(
    setup: AdapterSetup, splits: Sequence[AdapterSplit], progress: TrainingProgress
) -> list[AdapterResult]:
    """Train and evaluate one adapter per split; none is saved."""
    results, frozen_probes = [], FrozenProbes.fit(setup, splits)
    for split in splits:
        adapter = train_adapter(setup, split, progress.report_step)
        results.append(evaluate_adapter(setup, split, adapter, frozen_probes))
        progress.finish(setup.config.count_steps(split))
    return results


def _rank(
    results: dict[tuple[int, int], list[AdapterResult]], splits: Sequence[AdapterSplit], scorer: HeldOutScorer
) -> list[dict[str, Any]]:
    """Return the scores of each window, sorted by weighted F1."""
    adapted = {window: join_held_out(splits, [row.head_logits for row in rows]) for window, rows in results.items()}
    scores = {window: scorer.score(logits) for window, logits in adapted.items()}
    ranked = sorted(scores, key=lambda window: -scores[window]["waf"]["value"])
    rows = [
        {
            "layers": format_layers(list(range(window[0], window[1] + 1))),
            "window": list(window),
            "trainable": results[window][0].n_trainable,
            **scores[window],
            "gain": scorer.compare(
                join_held_out(splits, [row.frozen_logits for row in results[window]]), adapted[window]
            ),
            "against_best": scorer.compare(adapted[ranked[0]], adapted[window]),
        }
        for window in ranked
    ]
    adjust_by_holm([row["gain"] for row in rows])
    adjust_by_holm([row["against_best"] for row in rows[1:]])
    return rows

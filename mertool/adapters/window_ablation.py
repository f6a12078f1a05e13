"""Where an adapter helps: a short training in each of several windows of layers, at equal size.

The layer that reads out best need not be the one whose change helps most, so this ranking stands beside the
probes of frozen layers.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from mertool import encoders
from mertool.adapters.adapter import Adaptation, Method
from mertool.adapters.cross_validation import Unfinished, held_out, plan_jobs, train_jobs
from mertool.adapters.data import Progress, Wanted, only, read_clips
from mertool.adapters.trainer import Schedule
from mertool.devices import resolve_device, resolve_dtype
from mertool.errors import MertoolError
from mertool.extraction.decoding import DecoderLimits
from mertool.features import Recipe, format_layers
from mertool.learning.accelerator import make_accelerator
from mertool.learning.folds import Folds, speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.manifest import Manifest
from mertool.metrics import paired_bootstrap, score_json

SHORT = 8  # epochs
METHOD, SIZE = "bottleneck", 32


@dataclass(frozen=True)
class Injection:
    """What the ranking needs to know: the encoder the probed features came from, and the work's settings."""

    recipe: Recipe
    checkpoint: str
    classes: int
    seed: int
    device: str
    cache: Path


def candidates(blocks: int, width: int, read_out: tuple[int, int]) -> list[tuple[int, int]]:
    """Windows of `width` layers side by side from the last layer down, and the one that reads out best.

    >>> candidates(12, 4, (7, 10))
    [(1, 4), (5, 8), (7, 10), (9, 12)]
    """
    tiles = {(last - width + 1, last) for last in range(blocks, width - 1, -width)}
    return sorted(tiles | {read_out})


def ablate_windows(
    manifest: Manifest,
    windows: list[tuple[int, int]],
    examples: LabelledClips,
    folds: Folds,
    injection: Injection,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Held-out scores of a short adaptation of each window, best first, and paired tests against the best."""
    device = resolve_device(injection.device)
    dtype = resolve_dtype("auto", device)
    source = encoders.find(injection.checkpoint, "audio")
    if source.digest() != injection.recipe.weights:
        raise MertoolError(f"{source.folder} is no longer the encoder of the probed store: extract the store again")
    accelerator = make_accelerator(device, dtype)
    blocks = tuple(sorted({first - 1 for first, _ in windows}))
    wanted = Wanted(source, injection.recipe.weights, blocks, None, False, False, dtype, device, DecoderLimits())
    clips = read_clips(only(manifest, examples.clips), wanted, injection.cache, None, progress)
    kept = np.isin(examples.clips, clips.names)
    examples, folds = examples.select(kept), Folds(folds.fold_of[kept], folds.count, folds.description)
    schedule = Schedule(SHORT, patience=SHORT, seed=injection.seed)
    jobs = plan_jobs(examples, folds, injection.seed, final=False)
    found = []
    with progress("injection", "steps") as update, TemporaryDirectory() as folder:
        for number, (first, last) in enumerate(windows):
            encoder = encoders.load("audio", source, device, torch.float32)
            method = Method(METHOD, SIZE, tuple(range(first, last + 1)), mask_weight=0.0)
            adaptation = Adaptation(encoder, clips, examples.labels, injection.classes, method, False, accelerator)
            unfinished = Unfinished(Path(folder) / f"{first}-{last}", f"{first}-{last}", True)

            def step(done: int, total: int, before: int = number) -> None:
                update(before * total + done, len(windows) * total)

            trained = list(train_jobs(adaptation, jobs, schedule, unfinished, step))
            guess = {name: held_out(jobs, trained, name).argmax(-1) for name in ("frozen", "adapted")}
            found.append({"window": [first, last], "trainable": trained[0].trainable, **guess})
    return _ranked(found, examples, injection)


def _ranked(found: list[dict[str, Any]], examples: LabelledClips, injection: Injection) -> list[dict[str, Any]]:
    truth = examples.labels
    resampling: dict[str, Any] = {"seed": injection.seed, "groups": speaker_groups(examples)}
    for one in found:
        one["scores"] = score_json(truth, one["adapted"], injection.classes, **resampling)
        one["gain"] = paired_bootstrap(truth, one["frozen"], one["adapted"], classes=injection.classes, **resampling)
    found.sort(key=lambda one: -one["scores"]["waf"]["value"])
    return [
        {
            "layers": format_layers(list(range(one["window"][0], one["window"][1] + 1))),
            "window": one["window"],
            "trainable": one["trainable"],
            **one["scores"],
            "gain": one["gain"],
            "against_best": paired_bootstrap(
                truth, found[0]["adapted"], one["adapted"], classes=injection.classes, **resampling
            ),
        }
        for one in found
    ]

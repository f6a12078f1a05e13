"""Stage `predict`: raw clips in, labels out, with a bundle of `fuse` alone."""

import csv
import io
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mertool import fusion
from mertool.devices import resolve_device
from mertool.encoders import Source, find
from mertool.engine.assemble import Parts, assemble
from mertool.engine.crops import crops_beside
from mertool.engine.decode import Limits
from mertool.engine.fill import Job, fill_store
from mertool.engine.pipeline import Work
from mertool.engine.transcribe import transcribe_clips
from mertool.errors import ABSENT, MertoolError
from mertool.features import Recipe, faces_recipe
from mertool.files import check_writable, write_atomic
from mertool.manifest import Manifest
from mertool.predictions import Predictions
from mertool.runs import Run, load_tensors
from mertool.store import Failure, FeatureStore
from mertool.training.members import Features, member_logits

CLIPS_AT_ONCE = 1024


@dataclass(frozen=True)
class PredictOptions:
    """How to run; what is computed is fixed by the bundle."""

    device: str = "auto"
    workers: int | None = None
    clip_timeout: float = 120.0


@dataclass(frozen=True)
class PredictResult:
    """Numbers of clips: scored, by modalities present, and without any (with the reasons)."""

    output: str
    failures: str | None
    clips: int
    predicted: int
    modalities: dict[str, int]
    unreadable: int

    @property
    def failed_share(self) -> float:
        """Share of the clips without a row."""
        return self.unreadable / max(1, self.clips)


def predict(
    bundle: Path,
    manifest: Manifest,
    output: Path,
    options: PredictOptions,
    progress: Callable[[str, int, int, int, float], None],
) -> PredictResult:
    """Score every clip that has at least one modality; the others are listed in NAME.failures.csv.

    Features are cached in stores beside the output, so that a second run is quick and a killed one
    resumes. `progress` gets the part's name, clips done, clips in all, failures and seconds of media done.
    """
    check_writable(output, manifest.source)
    run = Run.read(bundle, "fuse", "parts", "classes", "options")
    _check_bundle(run)
    device = resolve_device(options.device)
    cache = output.with_name(output.name + ".features")
    stores = [
        _extract(run, number, manifest, cache / f"{part['name']}.h5", device, options, progress)
        for number, part in enumerate(run.info["parts"])
    ]
    with ExitStack() as stack:
        opened = [stack.enter_context(FeatureStore(path)) for path in stores]
        predictions = _score(run, manifest, opened, device)
        failures = _unreadable(manifest, opened, set(predictions.clips))
    predictions.write(output)
    reasons = output.with_name(output.stem + ".failures.csv")
    if failures:
        _write_failures(reasons, failures)
    else:
        reasons.unlink(missing_ok=True)
    names = ["+".join(present) for present in predictions.modalities]
    return PredictResult(
        str(output),
        str(reasons) if failures else None,
        len(manifest),
        len(predictions.clips),
        {name: names.count(name) for name in sorted(set(names))},
        len(manifest) - len(predictions.clips),
    )


def _check_bundle(run: Run) -> None:
    """Raise now, before the long work, if a part of the bundle is missing or damaged."""
    load_tensors(run.folder / "members.safetensors")
    for number, part in enumerate(run.info["parts"]):
        for what, folder in (("adapter", "adapters"), ("aligner", "aligner")):
            if part["recipe"][what] and not (run.folder / f"part{number}" / folder).is_dir():
                raise MertoolError(f"{run.folder} lacks the {what} of '{part['name']}': make the bundle again")


def _extract(
    run: Run,
    number: int,
    manifest: Manifest,
    store: Path,
    device: torch.device,
    options: PredictOptions,
    progress: Callable[[str, int, int, int, float], None],
) -> Path:
    part = run.info["parts"][number]
    folder = run.folder / f"part{number}"
    trained = Recipe.from_json(part["recipe"])
    # Clips to predict get the adapter trained on all folds, whatever their names.
    recipe = replace(trained, adapter=f"{trained.adapter}:final") if trained.adapter else trained

    def load() -> Work:
        source = _encoder(folder, part)
        if (digest := source.digest()) != trained.weights:
            raise MertoolError(
                f"encoder '{source.name}' is not the one of {run.folder} (weights {trained.weights[:12]} there, "
                f"{digest[:12]} here): give the bundle its own encoder"
            )
        adapters, aligner = (folder / name if (folder / name).exists() else None for name in ("adapters", "aligner"))
        return assemble(recipe, Parts(source, adapters, aligner), device)

    # Visual parts share the crops: the second one finds them in the cache.
    faces = crops_beside(store, faces_recipe(recipe.media)) if recipe.modality == "video" else None
    job = Job(store, recipe, part["origin"], load, Limits(options.workers, options.clip_timeout), faces, device=device)
    if "asr" in recipe.media:
        source = _recogniser(run, part)
        heard = partial(progress, f"{part['name']} (speech)")
        found = transcribe_clips(
            manifest, store, source, device, job.limits, lambda done, total, failed: heard(done, total, failed, 0.0)
        )
        manifest, job = found.manifest, replace(job, no_text=found.reasons)
    fill_store(manifest, job, partial(progress, part["name"]), overwrite=_is_other(store, recipe))
    return store


def _recogniser(run: Run, part: dict[str, Any]) -> Source:
    """The speech recogniser whose texts the part was trained on."""
    named = part["origin"]["asr"]
    source = find(named["checkpoint"], "audio", named["revision"])
    if source.digest() != part["recipe"]["media"]["asr"]:
        raise MertoolError(f"{source.folder} is not the speech recogniser of {run.folder}: give the bundle its own")
    return source


def _encoder(folder: Path, part: dict[str, Any]) -> Source:
    named = part["origin"]["encoder"]
    if (folder / "encoder").is_dir():
        return Source(named["name"], folder / "encoder", named["checkpoint"])
    return find(named["checkpoint"], part["modality"], named["revision"])


def _is_other(store: Path, recipe: Recipe) -> bool:
    """The cache belongs to the output; if another bundle filled it, it is filled anew."""
    if not store.exists():
        return False
    with FeatureStore(store) as found:
        return found.fingerprint != recipe.fingerprint


def _score(run: Run, manifest: Manifest, stores: list[FeatureStore], device: torch.device) -> Predictions:
    parts, options = run.info["parts"], run.info["options"]
    classes = tuple(run.info["classes"])
    shapes = [(int(part["shape"][0]), int(part["shape"][1])) for part in parts]
    head = fusion.build(options["head"], shapes, len(classes), options["width"], options["dropout"])
    state = {name: value.to(device) for name, value in load_tensors(run.folder / "members.safetensors").items()}
    clips = [clip.clip for clip in manifest.clips if any(clip.clip in store.index for store in stores)]
    rows: list[np.ndarray] = [np.zeros((0, len(classes)))]
    for start in range(0, len(clips), CLIPS_AT_ONCE):
        some = clips[start : start + CLIPS_AT_ONCE]
        features, present = _read(stores, shapes, some, device)
        # As in the official protocol, members vote by the mean of their logits.
        rows.append(member_logits(head.to(device), state, features, present).mean(0).softmax(-1).cpu().numpy())
    modalities = tuple(
        tuple(dict.fromkeys(part["modality"] for part, store in zip(parts, stores, strict=True) if clip in store.index))
        for clip in clips
    )
    return Predictions(tuple(clips), classes, np.concatenate(rows), modalities)


def _read(
    stores: list[FeatureStore], shapes: list[tuple[int, int]], clips: list[str], device: torch.device
) -> tuple[Features, torch.Tensor]:
    features, present = [], []
    for store, shape in zip(stores, shapes, strict=True):
        here = np.array([clip in store.index for clip in clips])
        values = np.zeros((len(clips), *shape), np.float32)
        if here.any():
            values[here] = store.read([clip for clip in clips if clip in store.index])
        features.append(torch.from_numpy(values).to(device))
        present.append(torch.from_numpy(here))
    return features, torch.stack(present, 1).to(device)


def _unreadable(manifest: Manifest, stores: list[FeatureStore], predicted: set[str]) -> list[Failure]:
    """Every failure of clips without a row, and real failures of the modalities of clips with one."""
    wanted = {clip.clip for clip in manifest.clips}
    return [
        replace(failure, stage=store.recipe.modality)
        for store in stores
        for failure in store.failures()
        if failure.clip in wanted and (failure.clip not in predicted or failure.reason not in ABSENT)
    ]


def _write_failures(path: Path, failures: list[Failure]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["clip", "modality", "reason", "message"])
    for failure in failures:
        writer.writerow([failure.clip, failure.stage, failure.reason, failure.message])
    write_atomic(path, buffer.getvalue())

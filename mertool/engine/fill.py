"""Filling one store: resume, plan, decode, encode, write, merge."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mertool.devices import worker_count
from mertool.engine import decode, pipeline
from mertool.engine.plan import WorkItem, make_plan
from mertool.features import Recipe
from mertool.manifest import Manifest
from mertool.store import FeatureStore, StoreWriter


@dataclass(frozen=True)
class Limits:
    """Decoder processes (None: by the cores) and the seconds one clip may take there."""

    workers: int | None = None
    clip_timeout: float = 120.0


@dataclass(frozen=True)
class Filled:
    """What was done, how many clips were cached, and the reason of every clip without features."""

    report: pipeline.Report
    cached: int
    reasons: list[str]


def fill_store(
    manifest: Manifest,
    output: Path,
    recipe: Recipe,
    origin: dict[str, Any],
    load: Callable[[], pipeline.Work | None],
    progress: pipeline.Progress,
    limits: Limits,
    faces: Path | None = None,
    overwrite: bool = False,
) -> Filled:
    """Bring the store `output` up to date with the manifest. `load` is called only if there is work."""
    with StoreWriter(output, recipe, origin, overwrite) as writer:
        plan = make_plan(manifest, recipe.modality, writer.done, writer.failed)
        report = pipeline.Report()
        if plan.todo:
            work, total = load(), len(plan.todo)
            if faces:
                with FeatureStore(faces) as store:
                    outcomes = decode.faces_from_store(plan.todo, store)
                    report = pipeline.run(outcomes, total, work, writer, progress)
            else:
                report = pipeline.run(_decoded(plan.todo, recipe, limits), total, work, writer, progress)
        writer.finish(clip.clip for clip in manifest.clips)
        failed = [writer.failed[clip.clip].reason for clip in manifest.clips if clip.clip in writer.failed]
        cached = sum(clip in writer.done for clip in plan.cached)
    return Filled(report, cached, failed)


def _decoded(items: Iterable[WorkItem], recipe: Recipe, limits: Limits) -> Iterable[decode.Outcome]:
    if recipe.modality == "text":
        return decode.decode_text(items)
    workers = worker_count(limits.workers)
    if recipe.modality == "audio":
        return decode.decode_in_processes(items, decode.decode_audio, workers, limits.clip_timeout)
    settings = {"fps": recipe.media["fps"], "most": recipe.media["most_frames"]}
    return decode.decode_in_processes(items, decode.decode_faces, workers, limits.clip_timeout, **settings)

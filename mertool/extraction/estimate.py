"""Estimate of the time and disk space of an extraction, from a measured sample of its clips."""

import random
import shutil
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mertool.extraction.face_crops import FaceCropCache
from mertool.extraction.job import ExtractionJob, ExtractionWorker
from mertool.extraction.pipeline import ExtractionStats
from mertool.extraction.plan import WorkItem, make_plan
from mertool.manifest import Manifest
from mertool.store import ClipFeatures, Failure, PartWriter, StoreWriter, check_store, parts_folder

WARM_UP_CLIPS, SAMPLE_CLIPS = 4, 32  # the first clips are slower, so they are run but not measured
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The work of an extraction: counts of clips, and needs of the clips to do, scaled up from a sample.

    clips: clips of the manifest, of which `cached` are in the store `store` and `todo` are not.
    sample: clips that were measured, of which `sample_failed` failed.
    media_hours: length of the media to decode.
    disk: bytes by which the store will grow; while parts are merged, as much again is needed for a moment.
    faces: the store of face crops that will be filled, and `faces_disk` the bytes by which it will grow.
    disk_free: bytes that are free on the disk of the store.
    seconds: duration of the extraction without loading the encoder.
    """

    store: str
    clips: int
    cached: int
    todo: int
    sample: int
    sample_failed: int
    media_hours: float
    disk: int
    faces: str | None
    faces_disk: int
    disk_free: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _SizeCounter(PartWriter):
    """Counts the bytes of features instead of writing them."""

    n_bytes = 0

    def add(self, features: ClipFeatures) -> None:
        self.n_bytes += features.values.size * self.dtype.itemsize

    def fail(self, failure: Failure) -> None:
        """Count nothing: a row of the table of failures is small."""


def estimate_extraction(manifest: Manifest, job: ExtractionJob, overwrite: bool = False) -> Estimate:
    """Extract some of the clips that the job's store lacks, without writing, and scale up what they took."""
    check_store(job.output, job.recipe, overwrite)
    done, failed = _stored_clips(job, overwrite)
    plan = make_plan(manifest, job.recipe.modality, done, failed)
    candidates = _unmeasured(job, list(plan.todo))
    drawn = random.Random(SEED).sample(candidates, min(len(candidates), WARM_UP_CLIPS + SAMPLE_CLIPS))
    sample = drawn[WARM_UP_CLIPS:] or drawn
    features, crops = _SizeCounter(job.output, job.recipe, {}), _SizeCounter(job.output, job.faces_recipe, {})
    stats = ExtractionStats()
    if sample:
        with ExtractionWorker(job) as worker:
            worker.do(drawn[:WARM_UP_CLIPS], _SizeCounter(job.output, job.recipe, {}), None, _no_progress)
            stats = worker.do(sample, features, crops, _no_progress)
    scale = len(plan.todo) / max(1, len(sample))
    folder = next(parent for parent in job.output.absolute().parents if parent.exists())
    return Estimate(
        store=str(job.output),
        clips=len(manifest),
        cached=len(plan.cached),
        todo=len(plan.todo),
        sample=len(sample),
        sample_failed=stats.failed,
        media_hours=round(scale * stats.media_seconds / 3600, 4),
        disk=int(np.ceil(scale * features.n_bytes)),
        faces=str(job.faces) if job.faces else None,
        faces_disk=int(np.ceil(scale * crops.n_bytes)),
        disk_free=shutil.disk_usage(folder).free,
        seconds=round(scale * stats.wall, 1),
    )


def _stored_clips(job: ExtractionJob, overwrite: bool) -> tuple[dict[str, str], dict[str, Failure]]:
    """Return digests of the clips in the store and its failures, including parts of an unfinished run."""
    if overwrite or not (job.output.exists() or parts_folder(job.output).exists()):
        return {}, {}
    with StoreWriter(job.output, job.recipe, job.origin) as writer:
        return writer.done, writer.failed


def _unmeasured(job: ExtractionJob, items: list[WorkItem]) -> list[WorkItem]:
    """Return the items whose faces must still be detected, if there are any: the other ones are much faster."""
    if job.faces is None:
        return items
    with FaceCropCache(job.faces, job.faces_recipe, None) as crops:
        return [item for item in items if not crops.has(item)] or items


def _no_progress(*_: object) -> None:
    """Ignore the progress of the sample."""

"""Estimate of the time and disk space of an extraction, from a measured sample of its clips."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mertool.extraction.face_crops import FaceCropCache
from mertool.extraction.items import list_job_items
from mertool.extraction.job import ExtractionJob
from mertool.extraction.plan import WorkItem, pending_items
from mertool.extraction.progress import ExtractionStats, no_progress
from mertool.extraction.targets import StoreTarget
from mertool.extraction.worker import ExtractionWorker
from mertool.manifest import Manifest
from mertool.store import ClipFeatures, Failure, PartWriter, as_stored, parts_folder

WARM_UP_CLIPS, SAMPLE_CLIPS = 4, 32  # the first clips are slower, so they are run but not measured
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The work of an extraction: counts of clips, and needs of the clips to do, scaled up from a sample.

    store: the first store of the job.
    clips: clips of the manifest, of which `cached` are in all stores and `todo` are not.
    sample: clips that were measured, of which `sample_failed` failed.
    media_hours: length of the media to decode.
    disk: bytes by which the stores will grow; while parts are merged, as much again is needed for a moment.
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

    n_values = 0

    @property
    def n_bytes(self) -> int:
        return self.n_values * self.dtype.itemsize

    def add(self, features: ClipFeatures) -> None:
        self.n_values += features.values.size
        # One clip that needs float32 makes the whole store float32.
        self.dtype = np.promote_types(self.dtype, as_stored(features.values, self.dtype).dtype)

    def fail(self, failure: Failure) -> None:
        """Count nothing: a row of the table of failures is small."""


def estimate_extraction(manifest: Manifest, job: ExtractionJob) -> Estimate:
    """Extract some of the clips that a store of the job lacks, without writing, and scale up what they took."""
    pending = _pending_items(manifest, job)
    candidates = _unmeasured(job, pending)
    drawn = random.Random(SEED).sample(candidates, min(len(candidates), WARM_UP_CLIPS + SAMPLE_CLIPS))
    sample = drawn[WARM_UP_CLIPS:] or drawn
    features, crops = _count_sizes(job.targets), _count_sizes([job.faces_target] if job.faces_target else [])
    stats = ExtractionStats()
    if sample:
        with ExtractionWorker(job) as worker:
            uncounted = _count_sizes(job.targets)
            worker.run(drawn[:WARM_UP_CLIPS], writers=uncounted, face_writer=None, on_progress=no_progress)
            stats = worker.run(sample, writers=features, face_writer=next(iter(crops), None), on_progress=no_progress)
    scale = len(pending) / max(1, len(sample))
    path = job.targets[0].path
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return Estimate(
        store=str(path),
        clips=len(manifest),
        cached=len(manifest) - len(pending),
        todo=len(pending),
        sample=len(sample),
        sample_failed=stats.failed,
        media_hours=round(scale * stats.media_seconds / 3600, 4),
        disk=int(np.ceil(scale * sum(counter.n_bytes for counter in features))),
        faces=str(job.faces) if job.faces else None,
        faces_disk=int(np.ceil(scale * sum(counter.n_bytes for counter in crops))),
        disk_free=shutil.disk_usage(folder).free,
        seconds=round(scale * stats.wall, 1),
    )


def _count_sizes(targets: Sequence[StoreTarget]) -> list[_SizeCounter]:
    return [_SizeCounter(target.path, target.recipe, {}) for target in targets]


def _pending_items(manifest: Manifest, job: ExtractionJob) -> list[WorkItem]:
    """Return the items that a store of the job lacks; raise MertoolError for a store of another recipe."""
    for target in job.targets:
        target.check()
    items = list_job_items(manifest, job)
    pending_of = [pending_items(items, *_stored_clips(target)) for target in job.targets]
    pending = {item.clip.clip for pending in pending_of for item in pending}
    return [item for item in items if item.clip.clip in pending]


def _stored_clips(target: StoreTarget) -> tuple[dict[str, str], dict[str, Failure]]:
    """Return digests of the clips in the store and its failures, including parts of an unfinished run."""
    if target.overwrite or not (target.path.exists() or parts_folder(target.path).exists()):
        return {}, {}
    with target.open_writer() as writer:
        return writer.done, writer.failed


def _unmeasured(job: ExtractionJob, items: list[WorkItem]) -> list[WorkItem]:
    """Return the items whose faces must still be detected, if there are any: the other ones are much faster."""
    target = job.faces_target
    if target is None:
        return items
    with FaceCropCache(target.path, target.recipe, None) as crops:
        return [item for item in items if not crops.has(item)] or items

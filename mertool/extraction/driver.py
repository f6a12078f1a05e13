"""`extract_to_stores`: bring the stores of a job up to date with a manifest.

Plan, extract the pending clips by a local worker or by workers on Ray, and merge what they wrote.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from mertool.errors import MertoolError
from mertool.extraction.face_crops import FaceCropCache
from mertool.extraction.items import list_job_items
from mertool.extraction.job import ExtractionJob
from mertool.extraction.plan import WorkItem, pending_items
from mertool.extraction.progress import ExtractionStats, ProgressCallback
from mertool.extraction.ray_backend import extract_on_ray
from mertool.extraction.worker import ExtractionWorker
from mertool.manifest import Manifest
from mertool.store import StoreBusy, StoreWriter


@dataclass(frozen=True)
class ExtractionSummary:
    """Outcome of an extraction.

    stats: of the clips that were processed now.
    cached: number of clips whose features were in all stores already.
    reasons: the reason of each clip of the manifest without features, old ones included.
    """

    stats: ExtractionStats
    cached: int
    reasons: list[str]


def extract_to_stores(manifest: Manifest, job: ExtractionJob, on_progress: ProgressCallback) -> ExtractionSummary:
    """Extract every clip that a store of the job lacks; the encoder is loaded only if there is one.

    Each clip is decoded and encoded once for all stores. Raises MertoolError for a store that is of another recipe,
    or that another process is writing.
    """
    with ExitStack() as stack:
        # All stores are opened, and so locked and checked, before the first clip is decoded. On an error the worker
        # ends first, and then each writer keeps what it has.
        writers = [stack.enter_context(target.open_writer()) for target in job.targets]
        items = list_job_items(manifest, job)
        pending_of = [pending_items(items, writer.done, writer.failed) for writer in writers]
        pending_clips = {item.clip.clip for pending in pending_of for item in pending}
        cached = sum(item.clip.clip in writers[0].done for item in items if item.clip.clip not in pending_clips)
        stats = ExtractionStats()
        if pending_clips:
            # A store that is complete is left as it is.
            incomplete = [index for index, pending in enumerate(pending_of) if pending]
            stats = _extract(
                [item for item in items if item.clip.clip in pending_clips],
                job=replace(job, targets=tuple(job.targets[index] for index in incomplete)),
                writers=[writers[index] for index in incomplete],
                order=[clip.clip for clip in manifest.clips],
                on_progress=on_progress,
            )
        for writer in writers:
            writer.finish(clip.clip for clip in manifest.clips)
        failed = writers[0].failed
    return ExtractionSummary(
        stats, cached, [failed[clip.clip].reason for clip in manifest.clips if clip.clip in failed]
    )


def _extract(
    items: Sequence[WorkItem],
    *,
    job: ExtractionJob,
    writers: Sequence[StoreWriter],
    order: Sequence[str],
    on_progress: ProgressCallback,
) -> ExtractionStats:
    with ExitStack() as stack:
        face_writer = stack.enter_context(_open_face_writer(job, items))
        if job.engine == "ray":
            stats = extract_on_ray(items, job=job, writers=writers, face_writer=face_writer, on_progress=on_progress)
        else:
            worker = stack.enter_context(ExtractionWorker(job))
            stats = worker.run(items, writers=writers, face_writer=face_writer, on_progress=on_progress)
        if face_writer:
            face_writer.finish(order)
    return stats


@contextmanager
def _open_face_writer(job: ExtractionJob, items: Sequence[WorkItem]) -> Iterator[StoreWriter | None]:
    """A writer of face crops; None if none is missing, so that several runs may share a complete store."""
    target = job.faces_target
    if target is None:
        yield None
        return
    with FaceCropCache(target.path, target.recipe, None) as crops:
        complete = crops.has_all(items)
    if complete:
        yield None
        return
    with ExitStack() as stack:
        try:
            writer = stack.enter_context(target.open_writer())
        except StoreBusy as error:
            raise MertoolError(
                f"another extraction is writing the face crops {target.path}: wait for it to end (this run then finds "
                "no face again), or give --faces OTHER.h5 or --no-keep-faces"
            ) from error
        writer.finish(())  # joins the parts of a killed run, so that they can be read
        yield writer

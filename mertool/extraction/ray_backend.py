"""Extraction on Ray: one worker per GPU, or per two cores, of this machine or of a cluster.

A worker is a Ray actor with an `ExtractionWorker` of its own. It extracts chunks of clips, writes their features as
parts beside the stores and returns only statistics; the driver holds the stores and merges the parts at the end.
Ray restarts an actor whose process dies and retries its chunk. Workers run the code that is installed where they
are: the package, the media, the encoder and the output must be at the same paths on every machine.
"""

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any

from mertool.errors import MertoolError
from mertool.extraction.decoding import MAX_WORKERS
from mertool.extraction.job import ExtractionJob
from mertool.extraction.plan import WorkItem
from mertool.extraction.progress import ExtractionStats, ProgressCallback
from mertool.extraction.ray_cluster import connected_ray, worker_resources
from mertool.extraction.worker import ExtractionWorker
from mertool.store import Failure, PartWriter, StoreWriter

CHUNKS_PER_WORKER = 8  # small chunks, so that all workers finish at about the same time
MAX_CHUNK_CLIPS = 256  # clips whose features are lost when a worker dies
RETRIES = 2  # of a chunk whose worker died; the fault may lie in the machine instead of the clip
POLL_SECONDS = 0.25  # interval at which the driver checks whether it was cancelled
START_SECONDS = 600.0  # for the first worker to get its resources in a busy cluster
CLOSE_SECONDS = 10.0


class RayWorker:
    """The class of the actors: an `ExtractionWorker` with writers of its own."""

    def __init__(self, job: ExtractionJob, write_faces: bool):
        self._job, self._stack = job, ExitStack()
        self._worker: ExtractionWorker | None = None
        self._writers = [target.part_writer() for target in job.targets]
        faces_target = job.faces_target if write_faces else None
        self._face_writer: PartWriter | None = faces_target.part_writer() if faces_target else None

    def load(self) -> None:
        """Load the encoder; not done by `__init__`, because Ray does not pass on the exceptions of that."""
        if self._worker is None:
            self._worker = self._stack.enter_context(ExtractionWorker(self._job))

    def run(self, items: Sequence[WorkItem]) -> ExtractionStats:
        """Extract a chunk of clips; when this returns, their features are on the disk."""
        self.load()  # again, if Ray restarted this actor
        assert self._worker is not None
        stats = self._worker.run(
            items, writers=self._writers, face_writer=self._face_writer, on_progress=lambda *_: None
        )
        for writer in (*self._writers, self._face_writer):
            if writer:
                writer.flush()
        return stats

    def close(self) -> None:
        """Stop the decoder processes."""
        self._stack.close()


def extract_on_ray(
    items: Sequence[WorkItem],
    *,
    job: ExtractionJob,
    writers: Sequence[StoreWriter],
    face_writer: StoreWriter | None,
    on_progress: ProgressCallback,
) -> ExtractionStats:
    """Extract `items` by many workers, which write parts of the stores that the writers hold.

    A clip on which workers keep dying is recorded as `crashed`. In the statistics `wall` is the driver's time, and
    `encode` the mean over the workers.
    """
    started = time.perf_counter()
    driver = _RayDriver(
        items=[replace(item, clip=item.clip.with_absolute_paths()) for item in items],
        job=_with_absolute_paths(job),
        writers=writers,
        write_faces=face_writer is not None,
        on_progress=on_progress,
    )
    # Ray runs in another thread, because it swallows what a signal handler raises in its own: an interrupt is raised
    # here. Ray also prints events to standard output, which is for the result of the command.
    with redirect_stdout(sys.stderr), ThreadPoolExecutor(1) as executor:
        try:
            stats = executor.submit(driver.run).result()
        finally:
            driver.cancelled.set()
    for writer in (*writers, face_writer):
        if writer:
            writer.flush()  # before the parts are read: of two rows of a clip the newer one counts
            writer.read_parts()
    stats.wall = time.perf_counter() - started
    return stats


def _with_absolute_paths(job: ExtractionJob) -> ExtractionJob:
    """Return a job for workers that run in another folder."""
    targets = tuple(replace(target, path=target.path.absolute()) for target in job.targets)
    return replace(job, targets=targets, faces=job.faces.absolute() if job.faces else None)


@dataclass(kw_only=True)
class _RayDriver:
    """Distributes chunks of clips over the actors and adds up their statistics."""

    items: Sequence[WorkItem]
    job: ExtractionJob
    writers: Sequence[StoreWriter]
    write_faces: bool
    on_progress: ProgressCallback
    cancelled: threading.Event = field(default_factory=threading.Event)
    stats: ExtractionStats = field(default_factory=ExtractionStats)

    def run(self) -> ExtractionStats:
        """Extract all items, or stop early if the run is cancelled."""
        with connected_ray(self.job.ray_address) as ray:
            count, resources = worker_resources(ray, self.job.device)
            decoders = self.job.limits.workers or max(1, min(MAX_WORKERS, resources["num_cpus"]))
            job = replace(self.job, limits=replace(self.job.limits, workers=decoders))
            chunks = deque(split_into_chunks(self.items, count))
            actor_class = ray.remote(RayWorker).options(max_restarts=-1, max_task_retries=RETRIES, **resources)
            actors = [actor_class.remote(job, self.write_faces) for _ in range(min(count, len(chunks)))]
            try:
                self._run_chunks(ray, actors, chunks)
                if actors and not self.cancelled.is_set():
                    ray.wait([actor.close.remote() for actor in actors], num_returns=len(actors), timeout=CLOSE_SECONDS)
            finally:
                for actor in actors:
                    ray.kill(actor)
        self.stats.encode /= max(1, len(actors))
        return self.stats

    def _run_chunks(self, ray: Any, actors: Sequence[Any], chunks: deque[Sequence[WorkItem]]) -> None:
        started = [actor.__ray_ready__.remote() for actor in actors]
        deadline = time.monotonic() + START_SECONDS
        # Unfinished calls with their actor and chunk, one per actor. A call without a chunk loads the encoder; only
        # an actor that has loaded it gets chunks, also after a crash, because a call to an actor that Ray is still
        # restarting fails, and its clips are not to blame.
        calls: dict[Any, tuple[Any, Sequence[WorkItem]]] = {actor.load.remote(): (actor, ()) for actor in actors}
        idle: list[Any] = []
        while calls and not self.cancelled.is_set():
            finished, _ = ray.wait(list(calls), timeout=POLL_SECONDS)
            if not finished and time.monotonic() > deadline and not ray.wait(started, timeout=0)[0]:
                raise MertoolError(
                    f"the Ray cluster started no worker within {START_SECONDS:.0f} s: `ray status` shows what uses its "
                    "CPUs and GPUs"
                )
            for call in finished:
                actor, chunk = calls.pop(call)
                try:
                    self._add(_result(ray, call))
                except ray.exceptions.ActorDiedError:  # it will not be restarted; another one takes its chunk
                    chunks.extend([chunk] if chunk else [])
                    continue
                except ray.exceptions.RayActorError:  # it died in every attempt, and Ray restarts it once more
                    if chunk:
                        chunks.extend(self._after_crash(chunk))
                        calls[actor.load.remote()] = (actor, ())
                    continue
                idle.append(actor)
            while chunks and idle:
                actor, chunk = idle.pop(), chunks.popleft()
                calls[actor.run.remote(chunk)] = (actor, chunk)
        if chunks and not self.cancelled.is_set():
            raise MertoolError(
                f"all {len(actors)} workers died while they loaded the encoder: --engine local may show why"
            )

    def _add(self, stats: ExtractionStats | None) -> None:
        if stats is not None:
            self.stats.add(stats)
            self.on_progress(self.stats.done, len(self.items), self.stats.failed, self.stats.media_seconds)

    def _after_crash(self, chunk: Sequence[WorkItem]) -> list[Sequence[WorkItem]]:
        """Return what to try again of a chunk on which its worker died: each clip by itself, but not a single clip."""
        if len(chunk) > 1:
            return [[item] for item in chunk]
        message = f"the worker process died on this clip in {RETRIES + 1} attempts"
        failed = chunk[0]
        for writer in self.writers:
            writer.fail(
                Failure(clip=failed.clip.clip, digest=failed.digest, stage="encode", reason="crashed", message=message)
            )
        self._add(ExtractionStats(reasons=Counter(crashed=1)))
        return []


def split_into_chunks(items: Sequence[WorkItem], n_workers: int) -> list[Sequence[WorkItem]]:
    """Split items into chunks of equal size, several per worker."""
    size = max(1, min(MAX_CHUNK_CLIPS, len(items) // (n_workers * CHUNKS_PER_WORKER)))
    return [items[first : first + size] for first in range(0, len(items), size)]


def _result(ray: Any, call: Any) -> ExtractionStats | None:
    """Return the result of a finished call; what the worker raised is raised here."""
    try:
        stats: ExtractionStats | None = ray.get(call)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, MertoolError):
            raise error.cause from None  # without the traceback of the worker
        raise
    return stats

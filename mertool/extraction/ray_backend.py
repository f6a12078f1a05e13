"""Extraction on Ray: one worker per GPU, or per two cores, of this machine or of a cluster.

A worker is an `ExtractionWorker` in a process of its own. It does chunks of the work, writes their features as parts
beside the
store and answers with a light report; the driver, which holds the store, hands out the chunks and takes note of the
parts. Workers run the code that is installed where they are: the package, the media, the encoder's folder (or the
hub's cache) and the output must be at the same paths on every machine.
"""

import logging
import os
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from mertool.errors import MertoolError
from mertool.extraction.job import ExtractionJob
from mertool.extraction.plan import WorkItem
from mertool.extraction.progress import ExtractionStats, ProgressCallback
from mertool.extraction.worker import ExtractionWorker
from mertool.store import Failure, PartWriter, StoreWriter

CHUNKS_EACH, MOST_CLIPS = 8, 256  # chunks per worker so that all end together; clips that a dead worker loses
IN_FLIGHT = 2  # chunks a worker has at a time: the next one waits there while the report of the last travels
MOST_DEATHS = 3  # of workers over one chunk, or at their start
CORES = 2  # of a worker without a GPU: one encodes, one decodes
MOST_DECODERS = 8
LOOK = 0.25  # seconds between looks at the workers and at whether the work is still wanted
CONNECT_SECONDS = 10.0
PLACE_SECONDS = 600.0  # for the first worker to get its place in a busy cluster
OBJECT_BYTES = 100 << 20  # of shared memory for a Ray of our own; only paths and reports go through it
ADDRESSES = "give auto, HOST:PORT or ray://HOST:PORT"

log = logging.getLogger(__name__)


def extract_on_ray(
    items: Sequence[WorkItem],
    *,
    job: ExtractionJob,
    writers: Sequence[StoreWriter],
    face_writer: StoreWriter | None,
    on_progress: ProgressCallback,
) -> ExtractionStats:
    """`ExtractionWorker.run` by many workers, which write parts of the stores that the writers hold.

    Without an address a Ray of our own runs on this machine for as long as this takes; `auto`, `HOST:PORT` and
    `ray://HOST:PORT` are clusters, which stay as they are, and so does a Ray this process is connected to. A worker
    that dies is replaced; a clip that kills its workers is recorded as `crashed`. In the report `wall` is the driver's
    and `encode` the mean of the workers.
    """
    began = time.perf_counter()
    fleet = _Fleet(items, job, writers, face_writer)
    report, shown = fleet.report, 0
    # Ray swallows what a signal's handler raises and sets a handler of its own, so it never sees the main thread.
    # It also prints what happens to its processes, to standard output, where a command's JSON goes.
    with redirect_stdout(sys.stderr), ThreadPoolExecutor(1) as thread:
        done = thread.submit(fleet.run)
        try:
            while not wait([done], LOOK).done or shown < report.done:
                if report.done > shown:
                    shown = report.done
                    on_progress(shown, len(items), report.failed, report.media_seconds)
        finally:
            fleet.unwanted.set()
    done.result()
    for store in (*writers, face_writer):
        if store:
            store.flush()  # before the parts are read: which of two rows is the newer one is seen there
            store.read_parts()
    report.wall = time.perf_counter() - began
    return report


class Worker:
    """The process of an actor: everything that does items of a job, and writers of its own."""

    def __init__(self, job: ExtractionJob, keeps_faces: bool):
        self._session = ExtractionWorker(job)
        self._writers = [target.part_writer() for target in job.targets]
        faces = job.faces_target if keeps_faces else None
        self._faces: PartWriter | None = faces.part_writer() if faces else None

    def pid(self) -> int:
        """The number of the process; an answer means that there is one."""
        return os.getpid()

    def start(self) -> None:
        """Load the encoder. Not part of `__init__`, because Ray turns what that raises into a dead actor."""
        self._session.__enter__()

    def do(self, items: list[WorkItem]) -> ExtractionStats:
        """Do a chunk; what it made is on the disk when this returns."""
        report = self._session.run(items, writers=self._writers, face_writer=self._faces, on_progress=lambda *_: None)
        for writer in (*self._writers, self._faces):
            if writer:
                writer.flush()
        return report

    def stop(self) -> None:
        """End the decoders."""
        self._session.__exit__(None, None, None)


@dataclass
class Chunk:
    """Items that are done together, and how many workers died over them."""

    items: list[WorkItem]
    deaths: int = 0

    def halves(self) -> list["Chunk"]:
        """Two chunks that one more death halves again: it is known by now that some clip is deadly."""
        middle = len(self.items) // 2
        return [Chunk(part, MOST_DEATHS - 1) for part in (self.items[:middle], self.items[middle:])]


class _Call(NamedTuple):
    """An unfinished call of a worker, and the chunk it is for, if any."""

    answer: Any
    chunk: Chunk | None


@dataclass
class _Place:
    """Where a worker works; one that dies is followed by another. Calls are answered in their order."""

    actor: Any = None
    pid: int | None = None
    ready: bool = False
    failed_starts: int = 0
    calls: deque[_Call] = field(default_factory=deque)


class _Fleet:
    """The workers of a run, the chunks they have to do, and the sum of their reports."""

    def __init__(
        self,
        items: Sequence[WorkItem],
        job: ExtractionJob,
        writers: Sequence[StoreWriter],
        face_writer: StoreWriter | None,
    ):
        self.items = [replace(item, clip=replace(item.clip, path=item.clip.path.absolute())) for item in items]
        targets = tuple(replace(target, path=target.path.absolute()) for target in job.targets)
        self.job = replace(job, targets=targets, faces=job.faces and job.faces.absolute())
        self.writers, self.keeps_faces = writers, face_writer is not None
        self.report, self.unwanted = ExtractionStats(), threading.Event()
        self.chunks: deque[Chunk] = deque()
        self.places: list[_Place] = []

    def run(self) -> None:
        """Do everything, unless it becomes unwanted."""
        with _connected(self.job.ray_address) as self.ray:
            count, self.share = _shares(self.ray, self.job.device)
            decoders = self.job.limits.workers or max(1, min(MOST_DECODERS, self.share["num_cpus"]))
            self.job = replace(self.job, limits=replace(self.job.limits, workers=decoders))
            self.chunks.extend(Chunk(part) for part in _split(self.items, count))
            self.places = [_Place() for _ in range(min(count, len(self.chunks)))]
            workers, self.heard = len(self.places), time.monotonic()
            try:
                for place in self.places:
                    self._hire(place)
                while not self.unwanted.is_set() and (self.chunks or any(place.calls for place in self._at_work())):
                    self._hand_out()
                    self._collect()
                self._dismiss()
            finally:
                for place in self.places:
                    if place.actor:
                        self.ray.kill(place.actor)
        self.report.encode /= max(1, workers)

    def _at_work(self) -> list[_Place]:
        return [place for place in self.places if place.ready]

    def _hire(self, place: _Place) -> None:
        """Start a worker; it gets chunks when it is ready."""
        place.actor = self.ray.remote(Worker).options(**self.share).remote(self.job, self.keeps_faces)
        place.pid, place.ready = None, False
        place.calls = deque(_Call(call.remote(), None) for call in (place.actor.pid, place.actor.start))

    def _hand_out(self) -> None:
        for most in range(1, IN_FLIGHT + 1):
            for place in self._at_work():
                if self.chunks and len(place.calls) < most:
                    chunk = self.chunks.popleft()
                    place.calls.append(_Call(place.actor.do.remote(chunk.items), chunk))

    def _collect(self) -> None:
        """Wait a moment for answers and take them in."""
        asked = {place.calls[0].answer: place for place in self.places if place.calls}
        answered, _ = self.ray.wait(list(asked), num_returns=1, timeout=LOOK)
        for answer in answered:
            self._take(asked[answer])
        if answered:
            self.heard = time.monotonic()
        elif time.monotonic() - self.heard > PLACE_SECONDS and not any(place.pid for place in self.places):
            wanted = f"{self.share['num_cpus']} CPUs and {self.share.get('num_gpus', 0)} GPUs"
            raise MertoolError(
                f"no worker got a place in the Ray cluster within {PLACE_SECONDS:.0f} s; each needs {wanted}: "
                "`ray status` shows who has them"
            )

    def _take(self, place: _Place) -> None:
        """Take in the answer to a worker's oldest call."""
        try:
            answer = self.ray.get(place.calls[0].answer)
        except self.ray.exceptions.RayActorError as error:
            self._replace(place, _cause(error))
            return
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MertoolError):
                raise error.cause from None
            raise
        call = place.calls.popleft()
        if call.chunk:
            self.report.add(answer)
        elif place.pid is None:
            place.pid = answer
        else:
            place.ready, place.failed_starts = True, 0

    def _replace(self, place: _Place, cause: str) -> None:
        """Have the chunks of a dead worker done by others, and another worker in its place."""
        self.ray.kill(place.actor)  # it may only be out of reach
        log.warning("worker %s died and is replaced: %s", place.pid or "", cause)
        # It died over the first; those behind had not begun.
        deadly, *others = place.calls
        self.chunks.extendleft(call.chunk for call in others if call.chunk)
        if deadly.chunk:
            self._do_again(deadly.chunk, cause)
        else:
            place.failed_starts += 1
        if place.failed_starts < MOST_DEATHS:
            self._hire(place)
            return
        self.places.remove(place)
        if not self.places:
            raise MertoolError(f"workers died as they started, {MOST_DEATHS} times each; the last: {cause}")

    def _do_again(self, chunk: Chunk, cause: str) -> None:
        """After all others: once more, in halves, or not at all if it is the one clip that kills workers."""
        chunk.deaths += 1
        if chunk.deaths < MOST_DEATHS:
            self.chunks.append(chunk)
        elif len(chunk.items) > 1:
            self.chunks.extend(chunk.halves())
        else:
            (item,) = chunk.items
            message = f"workers died over this clip; the last: {cause}"
            for writer in self.writers:
                writer.fail(Failure(item.clip.clip, item.digest, "encode", "crashed", message))
            self.report.add(ExtractionStats(reasons=Counter(crashed=1)))

    def _dismiss(self) -> None:
        """Let the workers that are through end their decoders; those of a worker that is killed end a little later."""
        stops = [] if self.unwanted.is_set() else [place.actor.stop.remote() for place in self._at_work()]
        if stops:
            self.ray.wait(stops, num_returns=len(stops), timeout=CONNECT_SECONDS)


def _split(items: list[WorkItem], workers: int) -> list[list[WorkItem]]:
    size = max(1, min(MOST_CLIPS, len(items) // (workers * CHUNKS_EACH)))
    return [items[first : first + size] for first in range(0, len(items), size)]


def _cause(error: Exception) -> str:
    """One line of what Ray says about a dead actor: how it ended, without guesses, or the end of a traceback."""
    _, found, detail = str(error).partition("exit detail: ")
    if found:
        return " ".join(detail.partition("Some common causes")[0].split())
    return str(error).strip().splitlines()[-1].strip()[-300:]


def _shares(ray: Any, device: torch.device) -> tuple[int, dict[str, int]]:
    """How many workers the machines have room for, and what each of them takes."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(node.get("CPU", 0)) for node in nodes]
    if device.type != "cuda":
        share = max(1, min(CORES, *cores))
        return max(1, sum(count // share for count in cores)), {"num_cpus": share}
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if not any(gpus):
        raise MertoolError(f"none of the {len(nodes)} machines of the Ray cluster has a GPU: give --device cpu")
    share = min(count // own for count, own in zip(cores, gpus, strict=True) if own)
    return sum(gpus), {"num_cpus": share, "num_gpus": 1}


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected; what was begun here is ended here."""
    ray = _import_ray(address)
    if ray.is_initialized():
        yield ray
        return
    _connect(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def _import_ray(address: str | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns of a change to come
    if address:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # twenty would take a quarter of an hour
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MertoolError("engine 'ray' needs Ray, which is not installed: pip install 'mertool[ray]'") from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        settings = {"include_dashboard": False, "num_cpus": cores, "object_store_memory": OBJECT_BYTES}
        ray.init("local", **settings, **quiet)
        return
    if address != "auto":
        _reach(ray, address)
    try:
        ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise MertoolError(
            f"cannot connect to Ray at '{address}' ({reason}): {ADDRESSES} of a running cluster"
        ) from error


def _reach(ray: Any, address: str) -> None:
    """Raise MertoolError if nobody listens at the address; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise MertoolError(f"Ray address '{address}' cannot be read: {ADDRESSES}")
    # Ray takes a loopback address for that of the machine, where alone it may listen.
    local = host in ("localhost", "127.0.0.1")
    reason = None
    for name in [host.strip("[]"), *([ray.util.get_node_ip_address()] if local else [])]:
        try:
            socket.create_connection((name, int(port)), CONNECT_SECONDS).close()
            return
        except (OSError, OverflowError) as error:
            reason = error
    raise MertoolError(f"cannot reach Ray at '{address}' ({reason}): {ADDRESSES} of a running cluster")

"""Reading clips in worker processes that may hang or die without ending the run.

The workers import this module, so it imports no torch: that would cost each of them seconds.
"""

import multiprocessing
import os
import queue
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import TimeoutError
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from mertool.errors import ClipError
from mertool.extraction.plan import WorkItem
from mertool.features import SAMPLE_RATE
from mertool.manifest import Clip
from mertool.noise import NoiseMix, add_noise, blurred

LOWER_PRIORITY = 10  # lower, and beside other programs decoders would get next to nothing, and clips time out
AHEAD = 4  # clips per worker that may wait, decoded, for the encoder
CLIPS_PER_PROCESS = 500  # a worker is replaced after these: decoders leak


@dataclass(frozen=True)
class DecodedClip:
    """What an encoder takes of one clip (a wave, face crops or a transcript), and what was seen of it.

    `spent` has the seconds its worker took, by kind of work (decode, faces).
    """

    content: Any
    seconds: float = float("nan")
    frames_seen: int = 0
    face_share: float = float("nan")
    spent: dict[str, float] = field(default_factory=dict)


DecodeResult = tuple[WorkItem, DecodedClip | ClipError]
# Whatever else a damaged file makes a decoder raise is that file's failure.
DAMAGE = (OSError, ValueError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class DecoderLimits:
    """Decoder processes (None: by the cores) and the seconds one clip may take there."""

    workers: int | None = None
    clip_timeout: float = 120.0


def decode_audio(path: Path, start: float | None, end: float | None, noise: NoiseMix | None = None) -> DecodedClip:
    """The sound of a clip, (n,) float32 at 16 kHz, with other sound in it if `noise` is given."""
    from mertool.media import read_audio

    began = time.perf_counter()
    wave = read_audio(path, start, end)
    if noise:
        wave = add_noise(wave, noise, read_audio)
    return DecodedClip(wave, len(wave) / SAMPLE_RATE, spent={"decode": time.perf_counter() - began})


def decode_faces(
    path: Path, start: float | None, end: float | None, fps: float, most: int, decoder: str = "auto", blur: int = 1
) -> DecodedClip:
    """The crops of the clip's face, (T, 224, 224, 3) uint8; frames are blurred by the factor `blur` before."""
    import torch

    from mertool.faces import find_face
    from mertool.media import read_frames

    torch.set_num_threads(1)
    spent = {"decode": 0.0}
    began = time.perf_counter()
    frames = blurred(_timed(read_frames(path, fps, most, start, end, decoder), spent), blur)
    track = find_face(frames)
    spent["faces"] = time.perf_counter() - began - spent["decode"]
    return DecodedClip(track.crops, track.seconds, track.seen, track.share, spent)


def decode_several(
    path: Path,
    start: float | None,
    end: float | None,
    readings: list[tuple[Callable[..., DecodedClip], dict[str, Any]]],
) -> DecodedClip:
    """What several readings (function, settings) of one clip give, as a list; if one fails, the others are there."""
    return DecodedClip([_attempt(read, path, start, end, settings) for read, settings in readings])


def _attempt(
    read: Callable[..., DecodedClip], path: Path, start: float | None, end: float | None, settings: dict[str, Any]
) -> DecodedClip | ClipError:
    try:
        return read(path, start, end, **settings)
    except ClipError as error:
        return error
    except DAMAGE as error:
        return _unreadable(error)


# What another try changes after a decoder hung or died: PyAV is the second decoder of frames.
FALLBACK_SETTINGS: dict[Callable[..., DecodedClip], dict[str, Any]] = {decode_faces: {"decoder": "pyav"}}

# What finding faces needs, beside what reading media needs.
FACE_MODULES = ("mertool.media", "mertool.faces", "facenet_pytorch")


class DecoderPool:
    """Worker processes that decode ahead of the device. Use as a context manager.

    `preload` names the modules that are imported once for all of them. With `low_priority` they leave the cores
    to an encoder that computes there: it has something to do as long as they are a little ahead.
    """

    def __init__(
        self, limits: DecoderLimits, preload: tuple[str, ...] = ("mertool.media",), low_priority: bool = False
    ):
        self.workers, self.timeout = worker_count(limits.workers), limits.clip_timeout
        self._pool = ProcessPool(
            self.workers,
            max_tasks=CLIPS_PER_PROCESS,
            context=_context(preload),
            initializer=_set_up_worker,
            initargs=[low_priority],
        )

    def __enter__(self) -> "DecoderPool":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error:
            self._pool.stop()
        else:
            self._pool.close()
        self._pool.join()

    def start(self) -> None:
        """Start the processes now, so that they are there when they are needed."""
        for _ in range(self.workers):
            self._pool.schedule(os.getpid)

    def read(
        self,
        items: Iterable[WorkItem],
        read: Callable[..., DecodedClip],
        settings_of: Callable[[Clip], dict[str, Any]] = lambda _: {},
        **settings: Any,
    ) -> Iterator[DecodeResult]:
        """Yield every item with what `read` made of it, as they come; a hang or a crash costs that item alone.

        `settings` are those of all clips, `settings_of` gives those of one.
        """
        done: queue.SimpleQueue[tuple[WorkItem, dict[str, Any], Any]] = queue.SimpleQueue()
        second = FALLBACK_SETTINGS.get(read, {})

        def schedule(item: WorkItem, options: dict[str, Any]) -> None:
            part = (item.clip.path, item.clip.start, item.clip.end)
            future = self._pool.schedule(read, args=part, kwargs=options, timeout=self.timeout)
            future.add_done_callback(lambda future: done.put((item, options, future)))

        source = iter(items)
        waiting = 0
        while True:
            while waiting < AHEAD * self.workers and (item := next(source, None)) is not None:
                schedule(item, {**settings, **settings_of(item.clip)})
                waiting += 1
            if not waiting:
                return
            item, options, future = done.get()
            outcome = _outcome(future, self.timeout)
            if isinstance(outcome, ClipError) and outcome.reason in ("timeout", "crashed") and second:
                if options.items() >= second.items():
                    outcome = ClipError(outcome.reason, f"{outcome.message}, with both decoders")
                else:
                    schedule(item, {**options, **second})
                    continue
            waiting -= 1
            yield item, outcome


def decode_text(items: Iterable[WorkItem], reasons: Mapping[str, str]) -> Iterator[DecodeResult]:
    """Transcripts; an empty one is a missing modality, unless `reasons` says why the clip has none."""
    for item in items:
        text = (item.clip.text or "").strip()
        yield item, DecodedClip(text) if text else ClipError(reasons.get(item.clip.clip, "no_text"))


def _outcome(future: Any, timeout: float) -> DecodedClip | ClipError:
    try:
        return future.result()
    except ClipError as error:
        return error
    except TimeoutError:
        return ClipError("timeout", f"decoding took longer than {timeout:g} s")
    except ProcessExpired as error:
        return ClipError("crashed", f"the decoder process died (exit code {error.exitcode})")
    except DAMAGE as error:
        return _unreadable(error)


def _unreadable(error: Exception) -> ClipError:
    return ClipError("unreadable", f"{type(error).__name__}: {error}"[:200])


def _timed(frames: Iterator[Any], spent: dict[str, float]) -> Iterator[Any]:
    while True:
        began = time.perf_counter()
        frame = next(frames, None)
        spent["decode"] += time.perf_counter() - began
        if frame is None:
            return
        yield frame


def _set_up_worker(low_priority: bool) -> None:
    if low_priority and hasattr(os, "nice"):
        os.nice(LOWER_PRIORITY)


def worker_count(asked: int | None = None) -> int:
    """Decoder processes: what was asked for, else the cores this process may use, at most eight."""
    if asked:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores))


def _context(preload: tuple[str, ...]) -> Any:
    """Never plain fork: it copies locks that torch's and HDF5's threads may hold at that moment."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver  # not everywhere

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    with _silence_stderr():
        forkserver.ensure_running()
    return context


@contextmanager
def _silence_stderr() -> Iterator[None]:
    """What is started meanwhile has no standard error: what C libraries say about damaged files is in nobody's
    language, and failures come back as reasons. Nor is the traceback of use that a process prints which was
    being started when the run ended."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

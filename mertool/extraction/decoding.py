"""Decode clips in worker processes, so that a file that makes a decoder hang or crash costs only that clip.

Worker processes import this module, so it does not import torch, which would cost each of them seconds.
"""

import errno
import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pebble import ProcessExpired, ProcessPool

from mertool.errors import ClipError, count_of
from mertool.extraction.parent_watch import end_with_parent
from mertool.extraction.plan import WorkItem
from mertool.extraction.process_context import decoder_context
from mertool.features import SAMPLE_RATE
from mertool.manifest import Clip
from mertool.media_digest import clip_signature
from mertool.media_stats import MediaStats
from mertool.noise import MAX_NOISE_SECONDS, NoiseMix, add_noise, check_noise, is_silent

NICENESS = 10  # at a lower priority decoders would starve beside other programs, and clips would time out
MAX_WORKERS = 8
MAX_AHEAD = 4  # decoded clips per worker that may wait for the encoder
MIN_AUDIO_SECONDS = 0.1
CLIPS_PER_PROCESS = 500  # a worker is replaced after these, because decoders leak memory

MAX_MEMORY = 16 << 30  # bytes of one worker: three times a day of audio

# Exceptions that decoders raise on a damaged file; any other exception is a bug of ours and ends the run.
DAMAGED_FILE_ERRORS = (OSError, ValueError, RuntimeError)


@dataclass(frozen=True)
class DecodedClip(MediaStats):
    """The input of an encoder for one clip, with the facts of its media.

    content: waveform (n,), face crops (T, 224, 224, 3) or a transcript.
    timings: seconds the worker process took, by kind of work (`decode`, `faces`).
    """

    content: Any
    timings: dict[str, float] = field(default_factory=dict, kw_only=True)


DecodeResult = tuple[WorkItem, DecodedClip | ClipError]
# Called in a worker process as f(path, start, end, **settings); start and end are in seconds.
DecodeFunction = Callable[..., DecodedClip]


@dataclass(frozen=True)
class DecoderLimits:
    """The number of decoder processes (None: by the cores) and the seconds one clip may take in one."""

    workers: int | None = None
    clip_timeout: float = 120.0


def decode_audio(path: Path, start: float | None, end: float | None, *, noise: NoiseMix | None = None) -> DecodedClip:
    """Decode the audio of a clip to (n,) float32 at 16 kHz, and mix `noise` into it.

    Raises ClipError: those of `read_audio`, and `silent` or `too_short` for audio that cannot carry an emotion.
    """
    from mertool.media import load_audio, read_audio

    began = time.perf_counter()
    waveform, stats = load_audio(path, start, end)
    check_audible(waveform)
    if noise:
        waveform = add_noise(waveform, noise, read_audio)
    return DecodedClip(waveform, timings={"decode": time.perf_counter() - began}, **stats.to_dict())


def check_audible(waveform: np.ndarray) -> None:
    """Raise ClipError for a waveform (n,) at 16 kHz that is shorter than a syllable, or does not move at all.

    An encoder would still give features of it, and a classifier a confident label.
    """
    seconds = len(waveform) / SAMPLE_RATE
    if seconds < MIN_AUDIO_SECONDS:
        message = f"{1000 * seconds:.0f} ms of audio, less than the {1000 * MIN_AUDIO_SECONDS:.0f} ms of a syllable"
        raise ClipError("too_short", message)
    if is_silent(waveform):
        raise ClipError("silent")


def decode_noise(path: Path, start: float | None, end: float | None) -> DecodedClip:
    """Read a file of noise to check it; its samples are not returned. Raises ClipError for one that is no noise."""
    from mertool.media import load_audio

    # A second more than is allowed, so that no more of a very long file is decoded.
    samples, stats = load_audio(path, start, MAX_NOISE_SECONDS + 1)
    check_noise(samples)
    return DecodedClip(None, **stats.to_dict())


def find_noise_faults(files: Sequence[Path], limits: DecoderLimits) -> dict[Path, str]:
    """Return why files cannot be mixed in as noise, by file; files without a fault are left out."""
    items = [WorkItem(Clip(clip=str(index), path=path), "") for index, path in enumerate(files)]
    with DecoderPool(limits) as decoders:
        faults = {
            files[int(item.clip.clip)]: result.message
            for item, result in decoders.read(items, decode_noise)
            if isinstance(result, ClipError)
        }
    return {path: faults[path] for path in files if path in faults}


def decode_faces(
    path: Path,
    start: float | None,
    end: float | None,
    *,
    fps: float,
    max_frames: int,
    blur_factor: int = 1,
) -> DecodedClip:
    """Crop the face of a clip from at most `max_frames` frames: (T, 224, 224, 3) uint8.

    Frames are blurred by `blur_factor` before the face is detected (1: not at all).
    """
    import torch

    from mertool.faces import blur_frames, find_face
    from mertool.media import read_frames

    torch.set_num_threads(1)  # the workers already use all cores
    timings = {"decode": 0.0}
    began = time.perf_counter()
    errors: list[str] = []
    frames = _timed(read_frames(path, fps, max_frames, start=start, end=end, errors=errors), timings)
    try:
        track = find_face(blur_frames(frames, blur_factor))
    except ClipError as error:
        if error.reason == "no_face" and errors:
            # The face may be in the pictures that were lost.
            raise ClipError("unreadable", f"{error.message}, and parts of it are damaged: {errors[0]}") from error
        raise
    timings["faces"] = time.perf_counter() - began - timings["decode"]
    n_errors = len(errors)
    return DecodedClip(
        track.crops,
        timings=timings,
        seconds=track.seconds,
        frames_seen=track.frames_seen,
        face_share=track.share,
        note=f"{count_of(n_errors, 'packet')} of video cannot be decoded ({errors[0]})" if errors else "",
    )


# Modules that worker processes need for faces; for audio `mertool.media` is enough.
FACE_MODULES = ("mertool.media", "mertool.faces", "facenet_pytorch")


class DecoderPool:
    """Worker processes that decode clips ahead of the encoder. Use as a context manager.

    `preload` names modules that are imported once for all workers. With `low_priority` the workers leave the
    cores to an encoder that computes on the CPU: it has work to do as long as they are a little ahead.
    """

    def __init__(
        self, limits: DecoderLimits, preload: tuple[str, ...] = ("mertool.media",), low_priority: bool = False
    ):
        self.workers, self.clip_timeout = worker_count(limits.workers), limits.clip_timeout
        self._pool = ProcessPool(
            self.workers,
            max_tasks=CLIPS_PER_PROCESS,
            context=decoder_context(preload),
            initializer=_initialize_worker,
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
        """Start the processes now, so that they are ready when the encoder has been loaded."""
        for _ in range(self.workers):
            self._pool.schedule(os.getpid)

    def read(
        self,
        items: Iterable[WorkItem],
        decode: DecodeFunction,
        settings_of: Callable[[Clip], dict[str, Any]] = lambda _: {},
        **settings: Any,
    ) -> Iterator[DecodeResult]:
        """Yield every item with its decoded clip or its error, in the order in which they are finished.

        The digest of an item is then the signature of its media, which are read anyway at that moment; it is empty for
        a file that could not be read. `settings` are passed to `decode` for all clips, `settings_of` returns further
        ones of a single clip. A clip on which a worker hangs or dies becomes a ClipError (`timeout` or `crashed`).
        """
        # pebble sets the results of futures in its own thread; this queue brings them to the caller's.
        finished: queue.SimpleQueue[tuple[WorkItem, Any]] = queue.SimpleQueue()
        modality = "audio" if decode is decode_audio else "video"
        source = iter(items)
        in_flight = 0
        while True:
            while in_flight < MAX_AHEAD * self.workers and (item := next(source, None)) is not None:
                path = item.clip.media_path(modality)
                if path is None:  # a clip that is a text alone
                    yield item, ClipError(f"no_{modality}", "the manifest names no media file of this clip")
                    continue
                arguments = (decode, path, item.clip.start, item.clip.end)
                options = {**settings, **settings_of(item.clip)}
                future = self._pool.schedule(_decode_signed, arguments, options, timeout=self.clip_timeout)
                future.add_done_callback(partial(_put_finished, finished, item))
                in_flight += 1
            if not in_flight:
                return
            item, future = finished.get()
            in_flight -= 1
            signature, result = _result_of(future, self.clip_timeout)
            yield replace(item, digest=signature), result


def _put_finished(finished: "queue.SimpleQueue[tuple[WorkItem, Any]]", item: WorkItem, future: Any) -> None:
    finished.put((item, future))


def decode_text(items: Iterable[WorkItem], reasons: Mapping[str, str]) -> Iterator[DecodeResult]:
    """Yield the transcripts; an empty one is the error `no_text`, or the clip's entry in `reasons`."""
    for item in items:
        text = (item.clip.text or "").strip()
        yield item, DecodedClip(text) if text else ClipError(reasons.get(item.clip.clip, "no_text"))


def _decode_signed(
    decode: DecodeFunction, path: Path, start: float | None, end: float | None, **settings: Any
) -> tuple[str, DecodedClip | ClipError]:
    """Decode a clip in a worker process; return the signature of its media, and the decoded clip or its error."""
    try:
        signature = clip_signature(path, start, end)
    except OSError:
        signature = ""  # the decoder says what is wrong with the file
    try:
        return signature, decode(path, start, end, **settings)
    except MemoryError:
        return signature, ClipError("too_large", f"decoding takes more than {MAX_MEMORY >> 30} GiB of memory")
    except (ClipError, *DAMAGED_FILE_ERRORS) as error:
        if _is_too_many_files(error):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
        if isinstance(error, ClipError):
            return signature, error
        return signature, ClipError("unreadable", f"{type(error).__name__}: {error}"[:200])


def _is_too_many_files(error: BaseException | None) -> bool:
    """Return True if an error, or one that caused it, is the limit of open files: the clip is not to blame for it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _result_of(future: Any, clip_timeout: float) -> tuple[str, DecodedClip | ClipError]:
    try:
        return future.result()
    except TimeoutError:
        return "", ClipError("timeout", f"decoding took longer than {clip_timeout:g} s")
    except ProcessExpired as error:
        return "", ClipError("crashed", f"the decoder process died (exit code {error.exitcode})")


def _timed(frames: Iterator[Any], timings: dict[str, float]) -> Iterator[Any]:
    """Yield the frames and add the seconds that decoding them takes to `timings`."""
    while True:
        began = time.perf_counter()
        frame = next(frames, None)
        timings["decode"] += time.perf_counter() - began
        if frame is None:
            return
        yield frame


def _initialize_worker(low_priority: bool) -> None:
    end_with_parent()
    _limit_memory()
    if low_priority and hasattr(os, "nice"):
        os.nice(NICENESS)


def _limit_memory() -> None:
    """Bound the memory of this process, so that no file can take that of the machine; not possible on Windows."""
    try:
        import resource
    except ImportError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MAX_MEMORY if most == resource.RLIM_INFINITY else min(MAX_MEMORY, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def worker_count(requested: int | None = None) -> int:
    """Return the number of decoder processes: `requested`, else one per core of this process, at most eight."""
    if requested:
        return requested
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cores))

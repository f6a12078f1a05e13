"""Reading clips in worker processes that may hang or die without ending the run."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pebble import ProcessExpired, ProcessPool

from mertool.engine.plan import WorkItem
from mertool.errors import ClipError
from mertool.features import SAMPLE_RATE

AHEAD = 4  # clips per worker that may wait, decoded, for the encoder
CLIPS_PER_PROCESS = 500  # a worker is replaced after these: decoders leak


@dataclass(frozen=True)
class Decoded:
    """What an encoder takes of one clip (a wave, face crops or a transcript), and what was seen of it."""

    content: Any
    seconds: float = float("nan")
    frames_seen: int = 0
    face_share: float = float("nan")


Outcome = tuple[WorkItem, Decoded | ClipError]


def decode_audio(path: Path, start: float | None, end: float | None) -> Decoded:
    """The sound of a clip, (n,) float32 at 16 kHz."""
    from mertool.media import read_audio

    wave = read_audio(path, start, end)
    return Decoded(wave, len(wave) / SAMPLE_RATE)


def decode_faces(path: Path, start: float | None, end: float | None, fps: float, most: int) -> Decoded:
    """The crops of the clip's face, (T, 224, 224, 3) uint8."""
    import torch

    from mertool.faces import find_face
    from mertool.media import read_frames

    torch.set_num_threads(1)
    track = find_face(read_frames(path, fps, most, start, end))
    return Decoded(track.crops, track.seconds, track.seen, track.share)


def decode_in_processes(
    items: Iterable[WorkItem], read: Callable[..., Decoded], workers: int, timeout: float, **settings: Any
) -> Iterator[Outcome]:
    """Yield every item with what `read` made of it, in order; a hang or a crash costs that item alone."""
    waiting: deque[tuple[WorkItem, Any]] = deque()
    with ProcessPool(workers, max_tasks=CLIPS_PER_PROCESS, context=_context()) as pool:
        try:
            for item in items:
                clip = item.clip
                future = pool.schedule(read, args=(clip.path, clip.start, clip.end), kwargs=settings, timeout=timeout)
                waiting.append((item, future))
                if len(waiting) >= AHEAD * workers:
                    yield _outcome(*waiting.popleft(), timeout)
            while waiting:
                yield _outcome(*waiting.popleft(), timeout)
        except BaseException:
            pool.stop()
            raise


def decode_text(items: Iterable[WorkItem]) -> Iterator[Outcome]:
    """Transcripts from the manifest; an empty one is a missing modality."""
    for item in items:
        text = (item.clip.text or "").strip()
        yield item, Decoded(text) if text else ClipError("no_text")


def faces_from_store(items: Iterable[WorkItem], store: Any) -> Iterator[Outcome]:
    """Crops from a store of `extract faces`; a clip it failed on keeps that reason."""
    failures = {failure.clip: failure for failure in store.failures()}
    facts, digests = store.facts(), store.digests()
    for item in items:
        name = item.clip.clip
        if name in failures:
            yield item, ClipError(failures[name].reason, failures[name].message)
        elif digests.get(name) != item.digest:
            yield item, ClipError("missing_file", f"{store.path} has no faces of this clip as it is now")
        else:
            row = store.index[name]
            yield (
                item,
                Decoded(
                    np.asarray(store.frames(name)),
                    float(facts["seconds"][row]),
                    int(facts["frames_seen"][row]),
                    float(facts["face_share"][row]),
                ),
            )


def _outcome(item: WorkItem, future: Any, timeout: float) -> Outcome:
    try:
        return item, future.result()
    except ClipError as error:
        return item, error
    except TimeoutError:
        return item, ClipError("timeout", f"decoding took longer than {timeout:g} s")
    except ProcessExpired as error:
        return item, ClipError("crashed", f"the decoder process died (exit code {error.exitcode})")
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        # Whatever else a damaged file makes a decoder raise is that file's failure.
        return item, ClipError("unreadable", f"{type(error).__name__}: {error}"[:200])


def _context() -> Any:
    """Never plain fork: it copies locks that torch's and HDF5's threads may hold at that moment."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mertool.media"])
    return context

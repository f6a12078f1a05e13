"""From outcomes of decoding to rows of a store: batch, encode, pool, write; failures on the way.

Three threads: one takes what the decoders give and prepares batches, this one keeps the device busy, one
fetches results from the device and writes them. Neither disk nor decoder holds the device up unless it is
the slowest of all.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from mertool.devices import is_out_of_memory
from mertool.errors import MISSING_MODALITY_REASONS, REASONS, ClipError
from mertool.extraction.background_writer import BackgroundWriter
from mertool.extraction.batching import BatchBudget, bucket_batches
from mertool.extraction.decoding import DecodedClip, DecodeResult
from mertool.extraction.plan import WorkItem
from mertool.extraction.prefetch import Prefetcher
from mertool.store import ClipFeatures, Failure, PartWriter

BATCHES_AHEAD = 2
# Results that may wait for the disk: features are small, face crops are megabytes per clip.
RESULTS_WAITING, CROPS_WAITING = 32, 4
Progress = Callable[[int, int, int, float], None]  # clips done, clips in all, failures, seconds of media done


class Encoder(Protocol):
    """What the pipeline needs of an encoder (see mertool.encoders)."""

    def prepare(self, item: Any) -> Any: ...

    def cost(self, prepared: Any) -> float: ...

    def encode_prepared(self, prepared: list[Any], keep: tuple[int, ...]) -> list[torch.Tensor]: ...


@dataclass
class EncodeSpec:
    """How to encode: which layers to keep, what to make of a clip's frames, which adapter it gets.

    `finish` turns (L, T, D) into the stored values, or into a list of them where several stores are filled;
    `variant` names the adapter of a clip and `select` switches to it; `limit` bounds the batches.
    """

    encoder: Encoder
    keep: tuple[int, ...]
    finish: Callable[[torch.Tensor], torch.Tensor | list[torch.Tensor]]
    limit: BatchBudget = field(default_factory=lambda: BatchBudget(0))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    variant: Callable[[str], str] = lambda _: ""
    select: Callable[[str], None] = lambda _: None


@dataclass
class ExtractionStats:
    """What became of the clips, and where the time went, in seconds.

    `wall` is from the first clip to the last write, `encode` the device's part of it; `decode` and `faces`
    are summed over the worker processes and `write` is another thread's: they run beside the device.
    """

    extracted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    media_seconds: float = 0.0
    truncated: int = 0
    wall: float = 0.0
    encode: float = 0.0
    decode: float = 0.0
    faces: float = 0.0
    write: float = 0.0

    @property
    def done(self) -> int:
        """Clips that are through, with features or a reason."""
        return self.extracted + sum(self.reasons.values())

    @property
    def failed(self) -> int:
        """Clips that failed; a modality that is simply absent is none."""
        return sum(count for reason, count in self.reasons.items() if reason not in MISSING_MODALITY_REASONS)

    @property
    def idle(self) -> float:
        """Seconds in which the device had nothing to do."""
        return max(0.0, self.wall - self.encode)


class Ready(NamedTuple):
    """A clip that can be encoded: its item, what was decoded, and that as the encoder's input."""

    item: WorkItem
    decoded: DecodedClip
    prepared: Any


def mean_pool(frames: torch.Tensor) -> torch.Tensor:
    """(L, T, D) -> (L, D)."""
    return frames.mean(dim=1)


def keep_frames(frames: torch.Tensor) -> torch.Tensor:
    """(L, T, D) as it is, or (T, D) for a single layer."""
    return frames[0] if len(frames) == 1 else frames


def run(
    outcomes: Iterable[DecodeResult],
    total: int,
    work: EncodeSpec | None,
    writer: PartWriter | Sequence[PartWriter],
    progress: Progress,
) -> ExtractionStats:
    """Encode and write all outcomes; without `work` the decoded content itself is stored (face crops).

    With several writers each gets its own of the values that `work.finish` gives.
    """
    report = ExtractionStats()
    began = time.perf_counter()
    truncated = _truncated(work)
    writers = [writer] if isinstance(writer, PartWriter) else list(writer)
    record = _Recorder(report, writers, lambda: progress(report.done, total, report.failed, report.media_seconds))
    with BackgroundWriter(RESULTS_WAITING if work else CROPS_WAITING) as sink:
        if work is None:
            for item, decoded in outcomes:
                sink.put(partial(record.as_it_is, item, decoded))
        else:
            _encode_all(outcomes, work, record, sink)
    report.wall = time.perf_counter() - began
    report.truncated = _truncated(work) - truncated
    return report


def _truncated(work: EncodeSpec | None) -> int:
    """Inputs the encoder has cut so far; only text encoders cut and count."""
    return getattr(work.encoder, "truncated", 0) if work else 0


def _encode_all(
    outcomes: Iterable[DecodeResult], work: EncodeSpec, record: "_Recorder", sink: BackgroundWriter
) -> None:
    def fail(item: WorkItem, error: ClipError) -> None:
        sink.put(partial(record.failure, item, error))

    ready = _ready(outcomes, work.encoder, fail)
    grouped = bucket_batches(
        ready, lambda clip: work.encoder.cost(clip.prepared), work.limit, lambda clip: work.variant(clip.item.clip.clip)
    )
    with Prefetcher(grouped, BATCHES_AHEAD) as batches_ahead:
        for batch in batches_ahead:
            work.select(work.variant(batch[0].item.clip.clip))
            for encoded in _encode(batch, work, fail):
                sink.put(partial(record.batch, encoded))


def _ready(
    outcomes: Iterable[DecodeResult], encoder: Encoder, fail: Callable[[WorkItem, ClipError], None]
) -> Iterator[Ready]:
    for item, decoded in outcomes:
        if isinstance(decoded, ClipError):
            fail(item, decoded)
            continue
        try:
            prepared = encoder.prepare(decoded.content)
        except ClipError as error:
            fail(item, error)
        else:
            yield Ready(item, decoded, prepared)


def _encode(batch: list[Ready], work: EncodeSpec, fail: Callable[[WorkItem, ClipError], None]) -> Iterator["_Encoded"]:
    """Encode a batch; one that does not fit the device is done in halves, and so are those to come."""
    try:
        yield _Encoded(batch, work)
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if work.device.type == "cuda":
            torch.cuda.empty_cache()
    if len(batch) == 1:
        fail(batch[0].item, ClipError("out_of_memory"))
        return
    work.limit.too_large(len(batch) * max(work.encoder.cost(clip.prepared) for clip in batch))
    middle = len(batch) // 2
    yield from _encode(batch[:middle], work, fail)
    yield from _encode(batch[middle:], work, fail)


class _Encoded:
    """A batch the device works on, whose values come to the host without holding the next batch up."""

    def __init__(self, batch: list[Ready], work: EncodeSpec):
        self.clips = [(clip.item, clip.decoded) for clip in batch]
        self._cuda = work.device.type == "cuda"
        began = self._mark()
        with torch.inference_mode():
            frames = work.encoder.encode_prepared([clip.prepared for clip in batch], work.keep)
            finished = [work.finish(clip) for clip in frames]
            values = [value if isinstance(value, list) else [value] for value in finished]
            self._shapes = [[value.shape for value in clip] for clip in values]
            flat = torch.cat([value.flatten().float() for clip in values for value in clip])
            self._values = torch.empty(flat.shape, pin_memory=True) if self._cuda else flat
            if self._cuda:
                self._values.copy_(flat, non_blocking=True)
        self._marks = (began, self._mark())

    def fetch(self) -> tuple[list[list[np.ndarray]], float]:
        """The values of each clip for each store, float32, and the seconds the device took; waits for it."""
        began, ended = self._marks
        if self._cuda:
            ended.synchronize()
        parts = iter(self._values.split([shape.numel() for clip in self._shapes for shape in clip]))
        values = [[next(parts).view(shape).cpu().numpy() for shape in clip] for clip in self._shapes]
        return values, began.elapsed_time(ended) / 1000 if self._cuda else ended - began

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass
class _Recorder:
    """Writes what became of clips; only the sink's thread calls it."""

    report: ExtractionStats
    writers: list[PartWriter]
    step: Callable[[], None]

    def batch(self, encoded: _Encoded) -> None:
        values, seconds = encoded.fetch()
        self.report.encode += seconds
        for (item, decoded), clip in zip(encoded.clips, values, strict=True):
            if all(np.isfinite(value).all() for value in clip):
                self.features(item, decoded, clip)
            else:
                self.failure(item, ClipError("not_finite"))

    def as_it_is(self, item: WorkItem, decoded: DecodedClip | ClipError) -> None:
        if isinstance(decoded, ClipError):
            self.failure(item, decoded)
        else:
            self.features(item, decoded, [decoded.content])

    def features(self, item: WorkItem, decoded: DecodedClip, values: list[np.ndarray]) -> None:
        began = time.perf_counter()
        facts = (decoded.seconds, decoded.frames_seen, decoded.face_share)
        for writer, value in zip(self.writers, values, strict=True):
            writer.add(ClipFeatures(item.clip.clip, item.digest, value, *facts))
        self.report.write += time.perf_counter() - began
        self.report.extracted += 1
        self.report.media_seconds += np.nan_to_num(decoded.seconds)
        for kind, seconds in decoded.timings.items():
            setattr(self.report, kind, getattr(self.report, kind) + seconds)
        self.step()

    def failure(self, item: WorkItem, error: ClipError) -> None:
        stage = REASONS[error.reason].stage
        for writer in self.writers:
            writer.fail(Failure(item.clip.clip, item.digest, stage, error.reason, error.message))
        self.report.reasons[error.reason] += 1
        self.step()

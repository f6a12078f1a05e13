"""From outcomes of decoding to rows of a store: batch, encode, pool, write; failures on the way."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from mertool.engine.batch import batches
from mertool.engine.decode import Decoded, Outcome
from mertool.engine.plan import WorkItem
from mertool.errors import ABSENT, ClipError
from mertool.store import ClipFeatures, Failure, StoreWriter

Ready = tuple[WorkItem, Decoded]
Progress = Callable[[int, int, int], None]  # clips done, clips in all, failures so far


class Encoder(Protocol):
    """What the pipeline needs of an encoder (see mertool.encoders)."""

    def cost(self, item: Any) -> float: ...

    def encode(self, items: list[Any], keep: tuple[int, ...]) -> list[torch.Tensor]: ...


@dataclass
class Work:
    """How to encode: which layers to keep, what to make of a clip's frames, which adapter it gets.

    `finish` turns (L, T, D) into the stored values; `variant` names the adapter of a clip and `select`
    switches to it.
    """

    encoder: Encoder
    keep: tuple[int, ...]
    finish: Callable[[torch.Tensor], torch.Tensor]
    most: float = 0.0
    variant: Callable[[str], str] = lambda _: ""
    select: Callable[[str], None] = lambda _: None


@dataclass
class Report:
    """What became of the clips, and where the time went (seconds)."""

    extracted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    media_seconds: float = 0.0
    decode_wait: float = 0.0
    encode: float = 0.0
    write: float = 0.0

    @property
    def failed(self) -> int:
        """Clips that failed; a modality that is simply absent is none."""
        return sum(count for reason, count in self.reasons.items() if reason not in ABSENT)


def mean_pool(frames: torch.Tensor) -> torch.Tensor:
    """(L, T, D) -> (L, D)."""
    return frames.mean(dim=1)


def keep_frames(frames: torch.Tensor) -> torch.Tensor:
    """(L, T, D) as it is, or (T, D) for a single layer."""
    return frames[0] if len(frames) == 1 else frames


def run(outcomes: Iterable[Outcome], total: int, work: Work | None, writer: StoreWriter, progress: Progress) -> Report:
    """Encode and write all outcomes; without `work` the decoded content itself is stored (face crops)."""
    report = Report()

    def step() -> None:
        done = report.extracted + sum(report.reasons.values())
        progress(done, total, report.failed)

    def fail(item: WorkItem, error: ClipError) -> None:
        stage = "encode" if error.reason in ("out_of_memory", "not_finite") else "decode"
        writer.fail(Failure(item.clip.clip, item.digest, stage, error.reason, error.message))
        report.reasons[error.reason] += 1
        step()

    ready = _ready(_timed(outcomes, report), fail)
    if work is None:
        encoded: Iterator[tuple[Ready, np.ndarray]] = ((pair, pair[1].content) for pair in ready)
    else:
        encoded = _encode(ready, work, report, fail)
    for (item, decoded), values in encoded:
        began = time.perf_counter()
        facts = (decoded.seconds, decoded.frames_seen, decoded.face_share)
        writer.add(ClipFeatures(item.clip.clip, item.digest, values, *facts))
        report.write += time.perf_counter() - began
        report.extracted += 1
        report.media_seconds += np.nan_to_num(decoded.seconds)
        step()
    return report


def _timed(outcomes: Iterable[Outcome], report: Report) -> Iterator[Outcome]:
    stream = iter(outcomes)
    while True:
        began = time.perf_counter()
        outcome = next(stream, None)
        report.decode_wait += time.perf_counter() - began
        if outcome is None:
            return
        yield outcome


def _ready(outcomes: Iterable[Outcome], fail: Callable[[WorkItem, ClipError], None]) -> Iterator[Ready]:
    for item, decoded in outcomes:
        if isinstance(decoded, ClipError):
            fail(item, decoded)
        else:
            yield item, decoded


def _encode(
    ready: Iterator[Ready], work: Work, report: Report, fail: Callable[[WorkItem, ClipError], None]
) -> Iterator[tuple[Ready, np.ndarray]]:
    def cost(pair: Ready) -> float:
        return work.encoder.cost(pair[1].content)

    def variant(pair: Ready) -> str:
        return work.variant(pair[0].clip.clip)

    for batch in batches(ready, cost, work.most, variant):
        began = time.perf_counter()
        work.select(variant(batch[0]))
        results = _encode_batch(batch, work)
        report.encode += time.perf_counter() - began
        for pair, values in results:
            if isinstance(values, ClipError):
                fail(pair[0], values)
            elif not np.isfinite(values).all():
                fail(pair[0], ClipError("not_finite"))
            else:
                yield pair, values


def _encode_batch(batch: list[Ready], work: Work) -> list[tuple[Ready, np.ndarray | ClipError]]:
    """Encode a batch; what does not fit the device, or one bad clip in it, is tried in halves."""
    try:
        frames = work.encoder.encode([decoded.content for _, decoded in batch], work.keep)
        with torch.inference_mode():
            values = [work.finish(clip).float().cpu().numpy() for clip in frames]
        return list(zip(batch, values, strict=True))
    except (ClipError, torch.OutOfMemoryError) as error:
        if len(batch) == 1:
            reason = error if isinstance(error, ClipError) else ClipError("out_of_memory")
            return [(batch[0], reason)]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    return _encode_batch(batch[:middle], work) + _encode_batch(batch[middle:], work)

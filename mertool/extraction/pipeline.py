"""The pipeline of a worker: from decoded clips to rows of stores.

Three threads: one takes decoded clips and prepares batches, the calling one keeps the device busy, one fetches
results from the device and writes them. So neither the disk nor the decoders hold the device up, unless one of them
is the slowest part.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from mertool.devices import is_out_of_memory
from mertool.errors import ClipError
from mertool.extraction.background_writer import BackgroundWriter
from mertool.extraction.batching import bucket_batches
from mertool.extraction.clip_encoder import ClipEncoder, EncodedBatch, PreparedClip
from mertool.extraction.decoding import DecodedClip, DecodeResult
from mertool.extraction.plan import WorkItem
from mertool.extraction.prefetch import Prefetcher
from mertool.extraction.progress import ExtractionStats, ProgressCallback
from mertool.store import ClipFeatures, Failure, PartWriter

BATCHES_AHEAD = 2
# Results that may wait for the disk: features are small, face crops are megabytes per clip.
MAX_WAITING_FEATURES, MAX_WAITING_CROPS = 32, 4
FailCallback = Callable[[WorkItem, ClipError], None]


def encode_and_write(
    decoded_clips: Iterable[DecodeResult],
    *,
    total: int,
    encoder: ClipEncoder | None,
    writers: Sequence[PartWriter],
    on_progress: ProgressCallback,
) -> ExtractionStats:
    """Encode decoded clips and write the values of each store with its writer.

    Without an encoder the decoded content itself is stored (face crops). `total` is the number of clips.
    """
    stats = ExtractionStats()
    started = time.perf_counter()
    truncated_before = encoder.truncated if encoder else 0
    recorder = _Recorder(stats, writers, total, on_progress)
    with BackgroundWriter(MAX_WAITING_FEATURES if encoder else MAX_WAITING_CROPS) as background:
        if encoder:
            _encode_all(decoded_clips, encoder, recorder=recorder, background=background)
        else:
            for item, decoded in decoded_clips:
                background.put(partial(recorder.write_decoded, item, decoded))
    stats.wall = time.perf_counter() - started
    stats.truncated = encoder.truncated - truncated_before if encoder else 0
    return stats


def _encode_all(
    decoded_clips: Iterable[DecodeResult],
    encoder: ClipEncoder,
    *,
    recorder: "_Recorder",
    background: BackgroundWriter,
) -> None:
    def fail(item: WorkItem, error: ClipError) -> None:
        background.put(partial(recorder.write_failure, item, error))

    grouped = bucket_batches(
        _prepare(decoded_clips, encoder, fail),
        cost=lambda clip: encoder.encoder.cost(clip.inputs),
        budget=encoder.budget,
        group=lambda clip: encoder.adapter_of(clip.item.clip.clip),
    )
    with Prefetcher(grouped, BATCHES_AHEAD) as prefetched:
        for batch in prefetched:
            for encoded in _encode_in_halves(batch, encoder, fail):
                background.put(partial(recorder.write_batch, encoded))


def _prepare(decoded_clips: Iterable[DecodeResult], encoder: ClipEncoder, fail: FailCallback) -> Iterator[PreparedClip]:
    for item, decoded in decoded_clips:
        if isinstance(decoded, ClipError):
            fail(item, decoded)
            continue
        try:
            inputs = encoder.encoder.prepare(decoded.content)
        except ClipError as error:
            fail(item, error)
        else:
            yield PreparedClip(item, decoded, inputs)


def _encode_in_halves(batch: list[PreparedClip], encoder: ClipEncoder, fail: FailCallback) -> Iterator[EncodedBatch]:
    """Encode a batch; one that does not fit the device is halved, and later batches are made smaller."""
    try:
        yield encoder.encode(batch)
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if encoder.device.type == "cuda":
            torch.cuda.empty_cache()  # else fragments of the failed batch stay reserved
    if len(batch) == 1:
        fail(batch[0].item, ClipError("out_of_memory"))
        return
    encoder.budget.too_large(len(batch) * max(encoder.encoder.cost(clip.inputs) for clip in batch))
    middle = len(batch) // 2
    yield from _encode_in_halves(batch[:middle], encoder, fail)
    yield from _encode_in_halves(batch[middle:], encoder, fail)


@dataclass
class _Recorder:
    """Writes features and failures and counts them; only the background thread calls it."""

    stats: ExtractionStats
    writers: Sequence[PartWriter]
    total: int
    on_progress: ProgressCallback

    def write_batch(self, encoded: EncodedBatch) -> None:
        values_of_clips, seconds = encoded.fetch()
        self.stats.encode += seconds
        for clip, values in zip(encoded.clips, values_of_clips, strict=True):
            # Checked here and not on the device, where it would stop the next batch; a clip fails in all stores.
            if all(np.isfinite(value).all() for value in values):
                self._write_features(clip.item, clip.decoded, values)
            else:
                self.write_failure(clip.item, ClipError("not_finite"))

    def write_decoded(self, item: WorkItem, decoded: DecodedClip | ClipError) -> None:
        if isinstance(decoded, ClipError):
            self.write_failure(item, decoded)
        else:
            self._write_features(item, decoded, [decoded.content] * len(self.writers))

    def write_failure(self, item: WorkItem, error: ClipError) -> None:
        for writer in self.writers:
            writer.fail(Failure.of(item.clip.clip, item.digest, error))
        self.stats.reasons[error.reason] += 1
        self._show_progress()

    def _write_features(self, item: WorkItem, decoded: DecodedClip, values: Sequence[np.ndarray]) -> None:
        started = time.perf_counter()
        for writer, value in zip(self.writers, values, strict=True):
            writer.add(ClipFeatures(item.clip.clip, item.digest, value, **decoded.to_dict()))
        self.stats.write += time.perf_counter() - started
        self.stats.extracted += 1
        self.stats.media_seconds += np.nan_to_num(decoded.seconds)
        for kind, seconds in decoded.timings.items():
            setattr(self.stats, kind, getattr(self.stats, kind) + seconds)
        self._show_progress()

    def _show_progress(self) -> None:
        self.on_progress(self.stats.done, self.total, self.stats.failed, self.stats.media_seconds)

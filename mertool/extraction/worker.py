"""`ExtractionWorker`: the decoders and the encoder of one process, which extracts items of a job.

A local run has one worker in its own process; a run on Ray has one in each of Ray's.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from mertool.extraction.decoding import (
    FACE_MODULES,
    DecodeResult,
    DecoderPool,
    decode_audio,
    decode_faces,
    decode_text,
)
from mertool.extraction.face_crops import FaceCropCache
from mertool.extraction.job import ExtractionJob
from mertool.extraction.pipeline import encode_and_write
from mertool.extraction.plan import WorkItem
from mertool.extraction.progress import ExtractionStats, ProgressCallback
from mertool.manifest import Clip
from mertool.store import PartWriter


class ExtractionWorker:
    """The decoder processes and the encoder of one process. Use as a context manager, which loads them."""

    def __init__(self, job: ExtractionJob):
        self.job = job
        self._stack = ExitStack()

    def __enter__(self) -> "ExtractionWorker":
        job = self.job
        modules = FACE_MODULES if job.modality in ("faces", "video") else ("mertool.media",)
        self._decoders = self._stack.enter_context(
            DecoderPool(job.limits, modules, low_priority=job.device.type == "cpu")
        )
        if job.modality != "text":
            self._decoders.start()  # processes start while the encoder loads
        self._encoder = job.encoder.load(job.targets, job.device, job.max_batch_cost) if job.encoder else None
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def run(
        self,
        items: Sequence[WorkItem],
        *,
        writers: Sequence[PartWriter],
        face_writer: PartWriter | None,
        on_progress: ProgressCallback,
    ) -> ExtractionStats:
        """Write features of `items` with one writer per target, and new face crops with `face_writer` if given."""
        with ExitStack() as stack:
            if target := self.job.faces_target:
                crops = stack.enter_context(FaceCropCache(target.path, target.recipe, face_writer))
                decoded: Iterable[DecodeResult] = crops.read(items, self._decode)
            else:
                decoded = self._decode(items)
            return encode_and_write(
                decoded, total=len(items), encoder=self._encoder, writers=writers, on_progress=on_progress
            )

    def _decode(self, items: Iterable[WorkItem]) -> Iterable[DecodeResult]:
        if self.job.modality == "text":
            return decode_text(items, self.job.missing_text)
        if self.job.modality == "audio":
            return self._decoders.read(items, decode_audio, self._noise_of)
        media = self.job.recipe.media
        settings = {"fps": media["fps"], "max_frames": media["most_frames"]}
        return self._decoders.read(items, decode_faces, self._noise_of, **settings)

    def _noise_of(self, clip: Clip) -> dict[str, Any]:
        """Decoder settings that add the job's noise to a clip."""
        noise = self.job.noise
        if noise is None:
            return {}
        return noise.audio_settings(clip) if self.job.modality == "audio" else noise.video_settings(clip)

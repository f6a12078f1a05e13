"""`Transcriber`: speech recognition for the clips that have no transcript."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mertool import encoders
from mertool.devices import is_out_of_memory
from mertool.encoders.chinese import convert_chinese
from mertool.encoders.recognition import warn_without_vad
from mertool.errors import MISSING_MODALITY_REASONS, TRANSIENT_REASONS, ClipError
from mertool.extraction.decoding import DecodedClip, DecodeResult, DecoderLimits, DecoderPool, decode_audio
from mertool.extraction.plan import WorkItem, is_unchanged
from mertool.extraction.progress import ProgressCallback
from mertool.extraction.transcripts import TranscriptRow, TranscriptTable, read_rows
from mertool.files import check_writable
from mertool.manifest import Manifest
from mertool.noise import NoiseCorruption

AudioClip = tuple[WorkItem, DecodedClip]


@dataclass(frozen=True)
class TranscribedManifest:
    """A manifest with recognised texts.

    manifest: with the texts filled in.
    reasons: the reason of each clip that still has no text, by clip; `no_text` if nobody speaks.
    pending: number of clips that were transcribed now; `cached` clips were in the CSV.
    """

    manifest: Manifest
    reasons: dict[str, str] = field(default_factory=dict)
    pending: int = 0
    cached: int = 0


@dataclass(frozen=True, kw_only=True)
class Transcriber:
    """Transcribes clips without a transcript with a Whisper, and keeps the texts in a CSV.

    output: the CSV; rows of the same recogniser and unchanged media are not transcribed again.
    recognition: the Whisper and its settings; it is loaded only if a clip has to be transcribed.
    device: of the Whisper.
    limits: of the decoder processes.
    noise: mixed into the audio.
    warn_without_vad: issue a MertoolWarning where clips are transcribed without voice activity detection.
    """

    output: Path
    recognition: encoders.SpeechRecognition
    device: torch.device
    limits: DecoderLimits = field(default_factory=DecoderLimits)
    noise: NoiseCorruption | None = None
    warn_without_vad: bool = False

    def transcribe(self, manifest: Manifest, on_progress: ProgressCallback) -> TranscribedManifest:
        """Transcribe the clips without a transcript. Raises MertoolError if `output` is a file of another kind."""
        items = [WorkItem(clip) for clip in manifest.clips if not (clip.text or "").strip()]
        if not items:
            return TranscribedManifest(manifest)
        check_writable(self.output, manifest.source)
        rows = read_rows(self.output)
        pending = [item for item in items if not self._is_cached(item, rows.get(item.clip.clip))]
        if pending:
            if self.warn_without_vad and self.recognition.settings.vad is None:
                warn_without_vad()
            table = TranscriptTable(self.output, rows, [clip.clip for clip in manifest.clips])
            self._fill(table, pending, on_progress)
        transcribed = {item.clip.clip: rows[item.clip.clip] for item in items}
        clips = [
            replace(clip, text=transcribed[clip.clip].text or clip.text) if clip.clip in transcribed else clip
            for clip in manifest.clips
        ]
        return TranscribedManifest(
            replace(manifest, clips=tuple(clips)),
            reasons={row.clip: row.reason or "no_text" for row in transcribed.values() if not row.text},
            pending=len(pending),
            cached=len(items) - len(pending),
        )

    @property
    def recogniser_id(self) -> str:
        """The name of the recogniser and its settings in the CSV."""
        return self.recognition.id

    def load_recogniser(self) -> Any:
        """Load the Whisper in the number format that suits the device (see encoders.asr)."""
        # On a CPU half precision gains little here, and near ties would depend on the batch.
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        return encoders.load_recogniser(self.recognition, device=self.device, dtype=dtype)

    def decode(self, items: Iterable[WorkItem]) -> Iterator[DecodeResult]:
        """Decode the audio of the clips."""
        noise_of = self.noise.audio_settings if self.noise else lambda _: {}
        with DecoderPool(self.limits) as decoders:
            yield from decoders.read(items, decode_audio, noise_of)

    def _is_cached(self, item: WorkItem, row: TranscriptRow | None) -> bool:
        if row is None or row.reason in TRANSIENT_REASONS:
            return False
        return row.recogniser == self.recogniser_id and is_unchanged(item, row.digest)

    def _fill(self, table: TranscriptTable, pending: list[WorkItem], on_progress: ProgressCallback) -> None:
        """Add the rows of the pending clips; an interrupted run keeps those that it has."""
        recogniser, failed = self.load_recogniser(), 0
        try:
            for done, row in enumerate(self._transcribe_rows(pending, recogniser), start=1):
                table.add(row)
                failed += bool(row.reason) and row.reason not in MISSING_MODALITY_REASONS
                on_progress(done, len(pending), failed, 0.0)
        finally:
            table.save()

    def _transcribe_rows(self, items: list[WorkItem], recogniser: Any) -> Iterator[TranscriptRow]:
        """Yield the row of every clip: decoding failures at once, the others when their batch is transcribed."""
        batch: list[AudioClip] = []
        for item, decoded in self.decode(items):
            if isinstance(decoded, ClipError):
                yield self._failure_row(item, decoded)
                continue
            # Every window is padded to the same length, so a batch's cost is a sum, and sorting gains nothing.
            cost = sum(recogniser.cost(audio.content) for _, audio in batch)
            if batch and cost + recogniser.cost(decoded.content) > recogniser.budget:
                yield from self._batch_rows(batch, recogniser)
                batch = []
            batch.append((item, decoded))
        yield from self._batch_rows(batch, recogniser)

    def _batch_rows(self, batch: list[AudioClip], recogniser: Any) -> Iterator[TranscriptRow]:
        for (item, _), transcript in zip(batch, _recognise(batch, recogniser), strict=True):
            if isinstance(transcript, ClipError):
                yield self._failure_row(item, transcript)
                continue
            reason = "" if transcript.text else "no_text"
            if not math.isfinite(transcript.confidence):
                reason = "not_finite"
            yield TranscriptRow(
                clip=item.clip.clip,
                text=convert_chinese(transcript.text, transcript.language, self.recognition.settings.chinese),
                language=transcript.language,
                confidence=transcript.confidence,
                no_speech=transcript.no_speech,
                digest=item.digest,
                recogniser=self.recogniser_id,
                reason=reason,
            )

    def _failure_row(self, item: WorkItem, error: ClipError) -> TranscriptRow:
        return TranscriptRow(
            clip=item.clip.clip, digest=item.digest, recogniser=self.recogniser_id, reason=error.reason
        )


def _recognise(batch: list[AudioClip], recogniser: Any) -> list[Any]:
    """Transcripts of a batch, or ClipErrors; a batch that does not fit the device is halved, and so are later ones."""
    if not batch:
        return []
    try:
        return list(recogniser.transcribe([audio.content for _, audio in batch]))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        halved = recogniser.halve()
        if len(batch) == 1 and not halved:
            return [ClipError("out_of_memory")]
    # Outside the handler: while it runs, the error's traceback holds the tensors of the failed batch.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(batch) + 1) // 2
    return _recognise(batch[:middle], recogniser) + _recognise(batch[middle:], recogniser)

"""Transcripts for the clips that have none: read, recognise, keep in a CSV that is also the cache."""

import csv
import io
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mertool import encoders
from mertool.devices import is_out_of_memory
from mertool.errors import MISSING_MODALITY_REASONS, TRANSIENT_REASONS, ClipError, MertoolError, combine_errors
from mertool.extraction.decoding import DecodedClip, DecodeResult, DecoderLimits, DecoderPool, decode_audio
from mertool.extraction.plan import WorkItem, item_digest
from mertool.files import check_writable, write_atomic
from mertool.manifest import Manifest

if TYPE_CHECKING:  # it imports transformers, which a run that finds everything in the cache does not need
    from mertool.encoders.asr import Recogniser, Transcript

COLUMNS = ("clip", "text", "confidence", "no_speech", "digest", "recogniser", "reason")
SAVE_SECONDS, SAVE_CLIPS = 60.0, 256  # a run that is killed loses no more than this
ReadyClip = tuple[WorkItem, DecodedClip]


@dataclass(frozen=True)
class TranscriptRow:
    """One line of the CSV: what was recognised in a clip, or the reason why it has no text.

    `confidence` and `no_speech` as in `encoders.asr.Transcript`, NaN (an empty cell) where they are not
    known. `digest` is of the clip's media, `recogniser` of the model. `reason` is "" or one of
    errors.REASONS: `no_text` where nobody speaks.
    """

    clip: str
    text: str
    confidence: float
    no_speech: float
    digest: str
    recogniser: str
    reason: str

    def cells(self) -> list[str]:
        numbers = ["" if math.isnan(value) else f"{value:.4f}" for value in (self.confidence, self.no_speech)]
        return [self.clip, self.text, *numbers, self.digest, self.recogniser, self.reason]


@dataclass(frozen=True)
class Transcribed:
    """The manifest with the recognised texts filled in, and what became of the clips that had none.

    `clips` had no transcript; of `cached` of them the outcome was in the CSV already; in `recognised` text
    was found now. In `silent` nobody speaks, and `failed` counts the reasons of those whose sound could not
    be used (`no_audio` is one); both count cached outcomes, too. `reasons` has the reason of each clip that
    has still no text.
    """

    manifest: Manifest
    recognised: int
    cached: int
    silent: int
    failed: dict[str, int]
    clips: int
    reasons: dict[str, str] = field(default_factory=dict)


def transcripts_beside(store: Path) -> Path:
    """Where the transcripts for a store of text features are kept."""
    return store.with_name(f"{store.stem}.transcripts.csv")


def transcribe_clips(
    manifest: Manifest,
    store: Path,
    source: encoders.CheckpointRef,
    device: torch.device,
    limits: DecoderLimits,
    progress: Callable[[int, int, int], None],
) -> Transcribed:
    """Recognise what is said in the clips without a transcript, for a store of text features."""
    with DecoderPool(limits) as decoders:
        return transcribe(
            manifest,
            transcripts_beside(store),
            source,
            lambda: load_recogniser(source, device),
            progress,
            lambda items: decoders.read(items, decode_audio),
        )


def load_recogniser(source: encoders.CheckpointRef, device: torch.device) -> "Recogniser":
    """The speech recogniser in the number format that suits the device."""
    # On a CPU half precision gains little here, and near ties would depend on the batch.
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    recogniser: Recogniser = encoders.load_recogniser(source, device, dtype)
    return recogniser


def transcribe(
    manifest: Manifest,
    output: Path,
    source: encoders.CheckpointRef,
    load: Callable[[], "Recogniser"],
    progress: Callable[[int, int, int], None],
    read: Callable[[Iterable[WorkItem]], Iterable[DecodeResult]],
    language: str | None = None,
) -> Transcribed:
    """Recognise the clips without a transcript and keep the texts in the CSV `output`.

    `source` is where the recogniser comes from, `load` loads it and is called only if there is work, `read`
    decodes the sound of the clips; `progress` is told clips done, clips in all and failures. `language` is
    what `load` tells the model, if anything: another one is another recogniser. Raises MertoolError if
    `output` is a file of another kind.
    """
    items = _without_text(manifest)
    if not items:
        return Transcribed(manifest, 0, 0, 0, {}, 0)
    check_writable(output, manifest.source)
    rows = read_rows(output)
    recogniser = _name(source, language)
    todo = [item for item in items if not _is_known(item, rows.get(item.clip.clip), recogniser)]
    if todo:
        sheet = TranscriptTable(output, [clip.clip for clip in manifest.clips], rows)
        _fill(sheet, todo, recogniser, load, progress, read)
    found = {item.clip.clip: rows[item.clip.clip] for item in items}
    reasons = {clip: row.reason or "no_text" for clip, row in found.items() if not row.text}
    failed = Counter(reasons.values())
    silent = failed.pop("no_text", 0)
    recognised = sum(found[item.clip.clip].text != "" for item in todo)
    filled = _with_texts(manifest, {name: row.text for name, row in found.items()})
    return Transcribed(filled, recognised, len(items) - len(todo), silent, dict(failed), len(items), reasons)


def clips_to_transcribe(manifest: Manifest, output: Path, source: encoders.CheckpointRef) -> list[WorkItem]:
    """The clips that `transcribe` would have read, because neither a text nor an outcome in the CSV is there."""
    items = _without_text(manifest)
    rows = read_rows(output) if items else {}
    return [item for item in items if not _is_known(item, rows.get(item.clip.clip), _name(source))]


def _without_text(manifest: Manifest) -> list[WorkItem]:
    return [WorkItem(clip, item_digest(clip, "audio")) for clip in manifest.clips if not (clip.text or "").strip()]


def _name(source: encoders.CheckpointRef, language: str | None = None) -> str:
    """What the CSV calls a recogniser."""
    return source.digest()[:16] + (f"-{language}" if language else "")


class TranscriptTable:
    """The CSV of a run: rows in the order of the manifest, then those of clips that are not in it."""

    def __init__(self, path: Path, order: list[str], rows: dict[str, TranscriptRow]):
        self.path, self.order, self.rows = path, order, rows
        self.unsaved, self.saved_at = 0, time.monotonic()

    def add(self, row: TranscriptRow) -> None:
        """Take a row in, and write the file if that was not done for a while."""
        self.rows[row.clip] = row
        self.unsaved += 1
        if self.unsaved >= SAVE_CLIPS or time.monotonic() - self.saved_at >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the file whole, if it lacks anything."""
        if self.unsaved:
            others = self.rows.keys() - set(self.order)
            names = [name for name in self.order if name in self.rows] + [n for n in self.rows if n in others]
            write_rows(self.path, [self.rows[name] for name in names])
        self.unsaved, self.saved_at = 0, time.monotonic()


def read_rows(path: Path) -> dict[str, TranscriptRow]:
    """Rows of a CSV of transcripts by clip, none where there is no file; MertoolError for any other file."""
    if not path.exists():
        return {}
    remedy = "give another output path, or move the file away"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise MertoolError(f"{path} is not a CSV of transcripts in UTF-8 ({error}); {remedy}") from error
    except OSError as error:
        raise MertoolError(f"cannot read {path}: {error.strerror}") from error
    if not lines or tuple(lines[0]) != COLUMNS:
        given = ",".join(lines[0])[:80] if lines else "nothing"
        raise MertoolError(
            f"{path} is not a CSV of transcripts: it begins with '{given}', valid is {','.join(COLUMNS)}; {remedy}"
        )
    rows: dict[str, TranscriptRow] = {}
    faults = []
    for number, cells in enumerate(lines[1:], start=2):
        if not cells:
            continue
        try:
            clip, text, confidence, no_speech, *rest = cells
            row = TranscriptRow(clip, text.strip(), float(confidence or "nan"), float(no_speech or "nan"), *rest)
        except (ValueError, TypeError):
            faults.append(f"row {number} is not {','.join(COLUMNS)} with numbers as confidence and no_speech")
            continue
        if row.clip in rows:
            faults.append(f"row {number}: clip id '{row.clip}' stands twice")
        rows[row.clip] = row
    if faults:
        raise MertoolError(f"{combine_errors(str(path), faults)}; correct it, or {remedy}")
    return rows


def write_rows(path: Path, rows: Iterable[TranscriptRow]) -> None:
    """Write a CSV of transcripts whole."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    write_atomic(path, buffer.getvalue())


def _is_known(item: WorkItem, row: TranscriptRow | None, recogniser: str) -> bool:
    if row is None or row.reason in TRANSIENT_REASONS:
        return False
    return (row.digest, row.recogniser) == (item.digest, recogniser)


def _fill(
    sheet: TranscriptTable,
    todo: list[WorkItem],
    name: str,
    load: Callable[[], "Recogniser"],
    progress: Callable[[int, int, int], None],
    read: Callable[[Iterable[WorkItem]], Iterable[DecodeResult]],
) -> None:
    """Bring the sheet up to date with `todo`; what is there when the run is interrupted is kept."""
    recogniser, failed = load(), 0
    try:
        for done, row in enumerate(_rows(read(todo), recogniser, name), start=1):
            sheet.add(row)
            failed += bool(row.reason) and row.reason not in MISSING_MODALITY_REASONS
            progress(done, len(todo), failed)
    finally:
        sheet.save()


def _rows(outcomes: Iterable[DecodeResult], recogniser: "Recogniser", name: str) -> Iterator[TranscriptRow]:
    """The row of every clip: failures of reading at once, the others as their batch is recognised."""
    batch: list[ReadyClip] = []
    for item, decoded in outcomes:
        if isinstance(decoded, ClipError):
            yield _row(item, decoded, name)
            continue
        # Every window is padded to the same length, so a batch's cost is a sum, and sorting gains nothing.
        cost = sum(recogniser.cost(ready.content) for _, ready in batch)
        if batch and cost + recogniser.cost(decoded.content) > recogniser.budget:
            yield from _recognise_rows(batch, recogniser, name)
            batch = []
        batch.append((item, decoded))
    yield from _recognise_rows(batch, recogniser, name)


def _recognise_rows(batch: list[ReadyClip], recogniser: "Recogniser", name: str) -> Iterator[TranscriptRow]:
    for (item, _), found in zip(batch, _recognise(batch, recogniser), strict=True):
        yield _row(item, found, name)


def _recognise(batch: list[ReadyClip], recogniser: "Recogniser") -> "list[Transcript | ClipError]":
    """Recognise a batch; what does not fit the device is tried in halves, and later batches are smaller."""
    if not batch:
        return []
    try:
        return list(recogniser.recognise([decoded.content for _, decoded in batch]))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = recogniser.halve()
        if len(batch) == 1 and not smaller:
            return [ClipError("out_of_memory")]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(batch) + 1) // 2
    return _recognise(batch[:middle], recogniser) + _recognise(batch[middle:], recogniser)


def _row(item: WorkItem, found: "Transcript | ClipError", recogniser: str) -> TranscriptRow:
    clip, digest = item.clip.clip, item.digest
    if isinstance(found, ClipError):
        return TranscriptRow(clip, "", math.nan, math.nan, digest, recogniser, found.reason)
    reason = "" if found.text else "no_text"
    if not math.isfinite(found.confidence):
        reason = "not_finite"
    return TranscriptRow(clip, found.text, found.confidence, found.no_speech, digest, recogniser, reason)


def _with_texts(manifest: Manifest, texts: dict[str, str]) -> Manifest:
    clips = (replace(clip, text=texts.get(clip.clip) or clip.text) for clip in manifest.clips)
    return replace(manifest, clips=tuple(clips))

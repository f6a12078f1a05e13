"""The CSV of recognised transcripts, which is also their cache: reading, writing and adding rows."""

import csv
import io
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mertool.errors import MertoolError, combine_errors
from mertool.files import write_atomic
from mertool.tables import MAX_TABLE_BYTES
from mertool.untrusted import read_bytes

COLUMNS = ("clip", "text", "language", "confidence", "no_speech", "digest", "recogniser", "reason")
SAVE_SECONDS, SAVE_CLIPS = 60.0, 256  # a killed run loses no more than this


@dataclass(frozen=True, kw_only=True)
class TranscriptRow:
    """One row of the CSV: the text recognised in a clip, or the reason why it has none.

    language, confidence, no_speech: see `encoders.asr.Transcript`; NaN (an empty cell) where they are not known.
    digest: of the clip's media. recogniser: of the model and its settings.
    reason: "" or one of errors.REASONS; `no_text` if nobody speaks.
    """

    clip: str
    text: str = ""
    language: str = ""
    confidence: float = math.nan
    no_speech: float = math.nan
    digest: str
    recogniser: str
    reason: str = ""

    def cells(self) -> list[str]:
        """Return the cells of the row, in the order of COLUMNS."""
        numbers = ["" if math.isnan(value) else f"{value:.4f}" for value in (self.confidence, self.no_speech)]
        return [self.clip, self.text, self.language, *numbers, self.digest, self.recogniser, self.reason]

    @classmethod
    def from_cells(cls, cells: Sequence[str]) -> "TranscriptRow":
        """Parse the cells of a row; raise ValueError if they are not those of COLUMNS."""
        clip, text, language, confidence, no_speech, digest, recogniser, reason = cells
        return cls(
            clip=clip,
            text=text.strip(),
            language=language,
            confidence=float(confidence or "nan"),
            no_speech=float(no_speech or "nan"),
            digest=digest,
            recogniser=recogniser,
            reason=reason,
        )


class TranscriptTable:
    """The CSV while a run adds rows: those of the manifest in its order, then the rows of other clips."""

    def __init__(self, path: Path, rows: dict[str, TranscriptRow], clip_order: Sequence[str]):
        self.path, self.rows, self.clip_order = path, rows, clip_order
        self._unsaved, self._saved_at = 0, time.monotonic()

    def add(self, row: TranscriptRow) -> None:
        """Add or replace the row of a clip; the file is written now and then."""
        self.rows[row.clip] = row
        self._unsaved += 1
        if self._unsaved >= SAVE_CLIPS or time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the file if rows were added since it was written."""
        if self._unsaved:
            ordered = dict.fromkeys([*(clip for clip in self.clip_order if clip in self.rows), *self.rows])
            write_rows(self.path, [self.rows[clip] for clip in ordered])
        self._unsaved, self._saved_at = 0, time.monotonic()


def transcripts_beside(store: Path) -> Path:
    """Return the path of the transcripts for a store of text features."""
    return store.with_name(f"{store.stem}.transcripts.csv")


def read_rows(path: Path) -> dict[str, TranscriptRow]:
    """Read the rows by clip; none if there is no file. Raises MertoolError for a file of another kind."""
    if not path.exists():
        return {}
    remedy = "give another output path, or move the file away"
    lines = _read_lines(path, remedy)
    if not lines or tuple(lines[0]) != COLUMNS:
        header = ",".join(lines[0])[:80] if lines else "nothing"
        raise MertoolError(
            f"{path} is not a CSV of transcripts: it begins with '{header}', valid is {','.join(COLUMNS)}; {remedy}"
        )
    rows: dict[str, TranscriptRow] = {}
    faults = []
    for number, cells in enumerate(lines[1:], start=2):
        if not cells:
            continue
        try:
            row = TranscriptRow.from_cells(cells)
        except ValueError:
            faults.append(f"row {number} is not {','.join(COLUMNS)} with numbers as confidence and no_speech")
            continue
        if row.clip in rows:
            faults.append(f"row {number}: clip id '{row.clip}' occurs twice")
        rows[row.clip] = row
    if faults:
        raise MertoolError(f"{combine_errors(str(path), faults)}; correct it, or {remedy}")
    return rows


def _read_lines(path: Path, remedy: str) -> list[list[str]]:
    content = read_bytes(path, remedy, max_bytes=MAX_TABLE_BYTES)
    try:
        return list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise MertoolError(f"{path} is not a CSV of transcripts in UTF-8 ({error}); {remedy}") from error


def write_rows(path: Path, rows: Iterable[TranscriptRow]) -> None:
    """Write a whole CSV of transcripts."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    write_atomic(path, buffer.getvalue())

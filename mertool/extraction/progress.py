"""Progress and statistics of an extraction."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields

from mertool.errors import MISSING_MODALITY_REASONS

# Called with the clips done, the clips in all, the clips that failed, and the seconds of media done.
ProgressCallback = Callable[[int, int, int, float], None]
# Called with a title and a unit; the context it returns gives the function that takes the progress.
ProgressFactory = Callable[[str, str], AbstractContextManager[Callable[..., None]]]


def no_progress(*_: object) -> None:
    """Show no progress."""


@dataclass
class ExtractionStats:
    """Numbers of clips by outcome, and where the time went, in seconds.

    extracted: clips that got features.
    reasons: clips without features, by reason code (see errors.REASONS).
    media_seconds: duration of the media that was encoded.
    truncated: inputs that were cut to the encoder's longest input (text only).
    wall: from the first clip to the last write; `encode` is the device's share of it.
    decode, faces: summed over the decoder processes. `write` is that of the writing thread. All three run beside
    the device.
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
        """Number of clips that were processed, with features or with a reason."""
        return self.extracted + sum(self.reasons.values())

    @property
    def failed(self) -> int:
        """Number of clips that failed; a clip that lacks the modality did not fail."""
        return sum(count for reason, count in self.reasons.items() if reason not in MISSING_MODALITY_REASONS)

    @property
    def idle(self) -> float:
        """Seconds in which the device waited for input."""
        return max(0.0, self.wall - self.encode)

    def add(self, stats: "ExtractionStats") -> None:
        """Add the statistics of another worker, field by field."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(stats, entry.name))


class StagedProgress:
    """One progress display over several stages that run one after the other over the same clips.

    Each stage counts for an equal share of the clips, because the number of clips that a later stage finds in the
    cache is not known before it begins.
    """

    def __init__(self, callback: ProgressCallback, *, stages: int, clips: int):
        self.callback, self.stages, self.clips = callback, stages, clips
        self._failed = [0] * stages
        self._media_seconds = 0.0

    def stage(self, index: int) -> ProgressCallback:
        """Return the callback of one stage, counted from 0."""

        def update(done: int, total: int, failed: int, media_seconds: float = 0.0) -> None:
            self._failed[index] = failed
            self._media_seconds = max(self._media_seconds, media_seconds)
            clips_done = self.clips * (index * total + done) // (self.stages * total)
            self.callback(clips_done, self.clips, sum(self._failed), self._media_seconds)

        return update

"""`Clip`: one row of a manifest."""

from dataclasses import dataclass, replace
from pathlib import Path

from mertool.manifest.numbers import NUMBERS
from mertool.media_digest import clip_digest, has_signature

COLUMNS = ("clip", "path", "label", "text", "speaker", "split", "start", "end", "audio", "gender", *NUMBERS)
SPLITS = ("train", "dev", "test", "unlabelled")
# Splits whose labels train and are scored under cross-validation; a clip without a split is one of them.
TRAINING_SPLITS = frozenset([None, "train", "dev"])


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip: a media file, or the part of one from `start` to `end` seconds.

    Attributes:
        clip: Its id, unique in a manifest.
        path: The media file; None for a clip that has a text alone.
        label: Emotion as the labels name it, or an alias.
        text: Transcript.
        speaker: Name of the speaker; folds keep the clips of one speaker together.
        split: One of SPLITS, or None.
        start: Seconds within the files at which the clip begins; None for the beginning.
        end: Seconds at which it ends; None for the end of the file.
        audio: The file that the sound is read from, where it is another one than `path`.
        gender: Gender of the speaker, as the labels name it.
        valence: From negative to positive, on the scale of the corpus.
        arousal: From calm to excited, on the scale of the corpus.
        sentiment: From -3 to 3, as MOSI and MOSEI rate it.
    """

    clip: str
    path: Path | None = None
    label: str | None = None
    text: str | None = None
    speaker: str | None = None
    split: str | None = None
    start: float | None = None
    end: float | None = None
    audio: Path | None = None
    gender: str | None = None
    valence: float | None = None
    arousal: float | None = None
    sentiment: float | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the clip is read from; none for a text alone."""
        return tuple(path for path in (self.path, self.audio) if path is not None)

    def media_path(self, modality: str) -> Path | None:
        """Return the file that a modality is read from, `audio` from another one than the picture where it is given."""
        return (self.audio or self.path) if modality == "audio" else self.path

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers that the clip is labelled with, by name."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        return {name: value for name, value in numbers.items() if value is not None}

    def with_absolute_paths(self) -> "Clip":
        """Return the same clip for a process with another working folder."""
        return replace(self, path=self.path and self.path.absolute(), audio=self.audio and self.audio.absolute())

    def digest(self, modality: str = "video") -> str:
        """Return a digest that changes when the file of the modality changes, or the part of it that the clip is.

        Empty for a clip without such a file. Raises OSError if the file cannot be read.
        """
        path = self.media_path(modality)
        return "" if path is None else clip_digest(path, self.start, self.end)

    def is_unchanged(self, signature: str, modality: str) -> bool:
        """Return True if the media of a modality are those that had this signature (see `media_digest`)."""
        path = self.media_path(modality)
        return not signature if path is None else has_signature(signature, path, start=self.start, end=self.end)

"""`Manifest`: the clips of a CSV or of a folder, and their labels, texts and speakers."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from mertool.errors import MertoolError
from mertool.files import digest_json
from mertool.manifest.clips import TRAINING_SPLITS, Clip
from mertool.manifest.csv_file import describe_unnamed, is_named_in_utf8, read_clips, write_clips
from mertool.manifest.folder import find_clips
from mertool.manifest.labels import EMOTIONS, canonical_label, describe_unknown_labels
from mertool.manifest.suffixes import AUDIO_SUFFIXES, VIDEO_SUFFIXES


@dataclass(frozen=True)
class Manifest:
    """Clips in a stable order.

    Attributes:
        clips: With unique ids.
        source: The CSV or the folder, for messages.
        notes: Sentences on how the source was read, for the user.
    """

    clips: tuple[Clip, ...]
    source: Path
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.clips)

    @classmethod
    def read(cls, source: Path) -> "Manifest":
        """Read a manifest CSV, or search a folder for video and audio files."""
        if source.is_dir():
            return cls.from_folder(source)
        if not source.exists():
            raise MertoolError(f"{source} does not exist: give a manifest CSV or a folder of video or audio files")
        if source.suffix.lower() in VIDEO_SUFFIXES | AUDIO_SUFFIXES:
            raise MertoolError(f"{source} is a media file: give the folder it lies in, or a manifest CSV")
        clips, notes = read_clips(source)
        return cls(clips, source, notes)

    @classmethod
    def from_folder(cls, folder: Path) -> "Manifest":
        """All video and audio files below `folder`, sorted by path (see `folder.find_clips`)."""
        clips, notes = find_clips(folder)
        return cls(clips, folder, notes)

    def named_in_utf8(self) -> "Manifest":
        """Return the manifest without clips whose file names no CSV in UTF-8 can hold; a note names the first."""
        unnamed = [clip for clip in self.clips if not is_named_in_utf8(clip)]
        if not unnamed:
            return self
        clips = tuple(clip for clip in self.clips if is_named_in_utf8(clip))
        note = describe_unnamed(unnamed)
        if not clips:
            raise MertoolError(f"{self.source}: {note}")
        return replace(self, clips=clips, notes=(*self.notes, note))

    def write(self, path: Path) -> None:
        """Write the CSV; paths become relative to its folder. Raises MertoolError if it cannot name a file."""
        write_clips(self.clips, path)

    def training_labels(self, classes: tuple[str, ...] = EMOTIONS) -> dict[str, str]:
        """Canonical labels of the training clips: splits test and unlabelled are left out, dev is not."""
        return self._labels(classes, TRAINING_SPLITS, "name another set with --classes a,b,c")

    def known_labels(self, classes: tuple[str, ...] = EMOTIONS) -> dict[str, str]:
        """Canonical label of every clip that has one, whatever its split; for scoring predictions."""
        remedy = "those of the predictions, so give the labels of the clips that were predicted"
        return self._labels(classes, TRAINING_SPLITS | {"test"}, remedy)

    def training_numbers(self, name: str) -> dict[str, float]:
        """Valence, arousal or sentiment of the training clips that have it, by clip id."""
        return self._numbers(name, TRAINING_SPLITS)

    def known_numbers(self, name: str) -> dict[str, float]:
        """Valence, arousal or sentiment of every clip that has it, whatever its split; for scoring predictions."""
        return self._numbers(name, TRAINING_SPLITS | {"test"})

    def _numbers(self, name: str, splits: frozenset[str | None]) -> dict[str, float]:
        return {clip.clip: clip.numbers[name] for clip in self.clips if name in clip.numbers and clip.split in splits}

    def _labels(self, classes: tuple[str, ...], splits: frozenset[str | None], remedy: str) -> dict[str, str]:
        labels = {clip.clip: clip.label for clip in self.clips if clip.label and clip.split in splits}
        if unknown := describe_unknown_labels(labels.values(), classes):
            raise MertoolError(f"{self.source}: {unknown}; {remedy}")
        return {clip: str(canonical_label(label, classes)) for clip, label in labels.items()}

    def describe_unknown_labels(self, classes: tuple[str, ...] = EMOTIONS) -> str:
        """Return a sentence about labels that mean none of `classes`, empty if there are none."""
        return describe_unknown_labels((clip.label for clip in self.clips if clip.label), classes)

    def subset(self, clip_ids: Iterable[str]) -> "Manifest":
        """Return the manifest of these clips only, in the order they have here."""
        chosen = set(clip_ids)
        return replace(self, clips=tuple(clip for clip in self.clips if clip.clip in chosen))

    def speakers(self) -> dict[str, str]:
        """Speaker of every clip that has one."""
        return {clip.clip: clip.speaker for clip in self.clips if clip.speaker}

    def digest(self) -> str:
        """Digest of what training depends on: ids, labels, texts, speakers and splits, but not paths or the order."""

        def content(clip: Clip) -> list[object]:
            values = [clip.clip, clip.label, clip.text, clip.speaker, clip.split, clip.start, clip.end]
            return [*values, *([clip.numbers] if clip.numbers else [])]

        return digest_json([content(clip) for clip in sorted(self.clips, key=lambda clip: clip.clip)])

"""`Clip` and `Manifest`: which clips there are, where they lie and what is known of them.

A manifest is a CSV file with the columns `clip,path,label,text,speaker,split,start,end`. Only `clip` and
`path` are required; paths are relative to the manifest; `start` and `end` are seconds within the file.
"""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mertool.errors import MertoolError, combine_errors, suggest
from mertool.files import digest_json, media_digest, write_atomic

COLUMNS = ("clip", "path", "label", "text", "speaker", "split", "start", "end")
SPLITS = ("train", "test", "unlabelled")
VIDEO_SUFFIXES = frozenset(
    [".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".flv", ".wmv", ".ts", ".3gp"]
)
AUDIO_SUFFIXES = frozenset([".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus", ".wma"])

# MER2023 to MER2026 use this order of indices (MERTools).
EMOTIONS = ("neutral", "angry", "happy", "sad", "worried", "surprise")
ALIASES = {
    "anger": "angry",
    "happiness": "happy",
    "joy": "happy",
    "sadness": "sad",
    "worry": "worried",
    "surprised": "surprise",
}


@dataclass(frozen=True)
class Clip:
    """One clip: a media file, or the part of one from `start` to `end` seconds."""

    clip: str
    path: Path
    label: str | None = None
    text: str | None = None
    speaker: str | None = None
    split: str | None = None
    start: float | None = None
    end: float | None = None

    def digest(self) -> str:
        """Changes when the file's size, head, middle or tail changes, or the part of it that is meant."""
        spot = media_digest(self.path)
        return spot if self.start is None and self.end is None else f"{spot}@{self.start}-{self.end}"


@dataclass(frozen=True)
class Manifest:
    """Clips in a stable order, and where they came from (`source`, for messages)."""

    clips: tuple[Clip, ...]
    source: Path

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
        return _read_csv(source)

    @classmethod
    def from_folder(cls, folder: Path) -> "Manifest":
        """All video and audio files below `folder`, sorted by path; hidden files are passed over."""
        paths = _media_files(folder)
        if not paths:
            raise MertoolError(
                f"{folder} holds no video or audio file (searched recursively for "
                f"{' '.join(sorted(VIDEO_SUFFIXES | AUDIO_SUFFIXES))})"
            )
        return cls(tuple(Clip(name, path) for name, path in _unique_names(folder, paths)), folder)

    def write(self, path: Path) -> None:
        """Write the CSV; paths become relative to its folder."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        for clip in self.clips:
            relative = os.path.relpath(clip.path.absolute(), path.absolute().parent)
            values = [clip.clip, Path(relative).as_posix()]
            values += ["" if v is None else str(v) for v in (getattr(clip, c) for c in COLUMNS[2:])]
            writer.writerow(values)
        try:
            write_atomic(path, buffer.getvalue())
        except UnicodeEncodeError as error:
            wrong = next(c.path for c in self.clips if not str(c.path).isprintable())
            raise MertoolError(f"the file name {str(wrong)!r} is not UTF-8: rename the file") from error

    def training_labels(self, classes: tuple[str, ...] = EMOTIONS) -> dict[str, str]:
        """Canonical labels of the training clips: splits test and unlabelled are left out."""
        return self._labels(classes, {None, "train"})

    def known_labels(self, classes: tuple[str, ...] = EMOTIONS) -> dict[str, str]:
        """Canonical label of every clip that has one, whatever its split; for scoring predictions."""
        other_set = "those of the predictions, so give the labels of the clips that were predicted"
        return self._labels(classes, {None, "train", "test"}, other_set)

    def _labels(
        self,
        classes: tuple[str, ...],
        splits: set[str | None],
        other_set: str = "name another set with --classes a,b,c",
    ) -> dict[str, str]:
        chosen = [clip for clip in self.clips if clip.label and clip.split in splits]
        unknown = Counter(str(c.label) for c in chosen if canonical_label(str(c.label), classes) is None)
        if unknown:
            raise MertoolError(f"{self.source}: {_unknown_labels(unknown, classes)}; {other_set}")
        return {clip.clip: str(canonical_label(str(clip.label), classes)) for clip in chosen}

    def describe_unknown_labels(self, classes: tuple[str, ...] = EMOTIONS) -> str:
        """A sentence about labels outside `classes`, empty if there are none."""
        labels = [str(c.label) for c in self.clips if c.label]
        unknown = Counter(label for label in labels if canonical_label(label, classes) is None)
        return _unknown_labels(unknown, classes) if unknown else ""

    def subset(self, clip_ids: Iterable[str]) -> "Manifest":
        """Return the manifest of these clips only, in the order they have here."""
        chosen = set(clip_ids)
        return replace(self, clips=tuple(clip for clip in self.clips if clip.clip in chosen))

    def speakers(self) -> dict[str, str]:
        """Speaker of every clip that has one."""
        return {clip.clip: clip.speaker for clip in self.clips if clip.speaker}

    def digest(self) -> str:
        """Digest of what training depends on: ids, labels, texts, speakers and splits, but not paths."""
        rows = [[c.clip, c.label, c.text, c.speaker, c.split, c.start, c.end] for c in self.clips]
        return digest_json(rows)


def parse_classes(text: str) -> tuple[str, ...]:
    """Class names from `a,b,c`, in index order."""
    classes = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise MertoolError(f"classes '{text}': give at least two different names as neutral,happy,sad")
    return classes


def canonical_label(label: str, classes: tuple[str, ...]) -> str | None:
    """The class a label names, by itself or by a known alias; None if there is none."""
    name = label.strip().lower()
    if name in classes:
        return name
    alias = ALIASES.get(name)
    return alias if alias in classes else None


def _unknown_labels(unknown: Counter[str], classes: tuple[str, ...]) -> str:
    names = ", ".join(f"'{label}' ({count} clips)" for label, count in unknown.most_common(8))
    hint = suggest(next(iter(unknown)), classes)
    return f"unknown labels {names}: {hint}valid: {', '.join(classes)}"


def _media_files(folder: Path) -> list[Path]:
    wanted = VIDEO_SUFFIXES | AUDIO_SUFFIXES
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(root, name)
            for name in sorted(files)
            if Path(name).suffix.lower() in wanted and not name.startswith(".")
        ]
    return found


def _unique_names(folder: Path, paths: list[Path]) -> Iterable[tuple[str, Path]]:
    """The file's stem; where two files share it, the relative path with `__` for `/` (and the suffix)."""
    stems = Counter(path.stem for path in paths)
    joined = Counter("__".join(path.relative_to(folder).with_suffix("").parts) for path in paths)
    given: set[str] = set()
    for path in paths:
        name = path.stem
        if stems[name] > 1:
            name = "__".join(path.relative_to(folder).with_suffix("").parts)
            if joined[name] > 1:
                name += path.suffix
        clean = "".join(char if char.isprintable() else "_" for char in name).strip() or "_"
        name, number = clean, 1
        while name in given:
            number += 1
            name = f"{clean}_{number}"
        given.add(name)
        yield name, path


def _read_csv(path: Path) -> Manifest:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise MertoolError(f"{path} is not a CSV file in UTF-8 ({error})") from error
    except OSError as error:
        raise MertoolError(f"cannot read {path}: {error.strerror}") from error
    header = [name.strip().lower() for name in rows[0]] if rows else []
    faults = _header_faults(header)
    if faults:
        raise combine_errors(str(path), faults)
    clips: list[Clip] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            faults.append(f"row {number} has {len(row)} cells, the header {len(header)}")
            continue
        clip, wrong = _read_row(dict(zip(header, (c.strip() for c in row), strict=True)), path.parent)
        faults += [f"row {number}: {fault}" for fault in wrong]
        if clip.clip in seen:
            faults.append(f"row {number}: clip id '{clip.clip}' stands already in row {seen[clip.clip]}")
        seen.setdefault(clip.clip, number)
        clips.append(clip)
    if faults:
        raise combine_errors(str(path), faults)
    if not clips:
        raise MertoolError(f"{path} holds no clip: a header and at least one row are needed")
    return Manifest(tuple(clips), path)


def _header_faults(header: list[str]) -> list[str]:
    valid = f"valid: {','.join(COLUMNS)}"
    faults = [f"unknown column '{name}': {suggest(name, COLUMNS)}{valid}" for name in header if name not in COLUMNS]
    faults += [f"column '{name}' stands twice" for name, n in Counter(header).items() if n > 1]
    faults += [f"column '{name}' is missing; {valid}" for name in ("clip", "path") if name not in header]
    return faults


def _read_row(cells: dict[str, str], folder: Path) -> tuple[Clip, list[str]]:
    faults = clip_id_faults(cells["clip"])
    if not cells["path"]:
        faults.append("path is empty")
    split = cells.get("split") or None
    if split and split not in SPLITS:
        faults.append(f"unknown split '{split}': {suggest(split, SPLITS)}valid: {', '.join(SPLITS)}")
    times: dict[str, float | None] = {}
    for name in ("start", "end"):
        try:
            times[name] = float(cells[name]) if cells.get(name) else None
            if not math.isfinite(times[name] or 0):
                raise ValueError
        except ValueError:
            faults.append(f"{name} '{cells[name]}' is not a number of seconds")
            times[name] = None
    start, end = times["start"], times["end"]
    if (start is not None and not start >= 0) or (end is not None and not end > (start or 0)):
        faults.append(f"start {start} and end {end}: 0 <= start < end is needed")
    clip = Clip(
        cells["clip"],
        folder / cells["path"],
        cells.get("label") or None,
        cells.get("text") or None,
        cells.get("speaker") or None,
        split,
        start,
        end,
    )
    return clip, faults


def clip_id_faults(name: str) -> list[str]:
    """What is wrong with a clip id: it must be printable, without `/`, and not empty."""
    if not name:
        return ["clip id is empty"]
    if "/" in name or not name.isprintable():
        return [f"clip id {name!r} must be printable and hold no '/'"]
    return []


def with_annotations(
    manifest: Manifest,
    *,
    labels: dict[str, str] | None = None,
    texts: dict[str, str] | None = None,
    speakers: dict[str, str] | None = None,
    splits: dict[str, str] | None = None,
) -> Manifest:
    """The same clips with labels, transcripts, speakers and splits filled in by clip id.

    Where labels are given, a labelled clip is `train` and one without a label `unlabelled`, unless
    `splits` says otherwise.
    """
    clips = []
    for clip in manifest.clips:
        label = (labels or {}).get(clip.clip, clip.label)
        split = (splits or {}).get(clip.clip) or clip.split
        if split is None and labels is not None:
            split = "train" if label else "unlabelled"
        clips.append(
            replace(
                clip,
                label=label,
                split=split,
                text=(texts or {}).get(clip.clip, clip.text),
                speaker=(speakers or {}).get(clip.clip, clip.speaker),
            )
        )
    return Manifest(tuple(clips), manifest.source)

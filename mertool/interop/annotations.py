"""Labels, transcripts and other facts of clips in one form for all toolkits, and their join with a manifest."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mertool.errors import MertoolError, combine_errors, count_of
from mertool.manifest import NUMBERS, Clip, ClipIndex, Manifest, clip_id_faults

MERGED_FIELDS = ("label", "text", "speaker", "gender", "split", *NUMBERS)


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One row of a file about a clip; None where the row has no value.

    Attributes:
        name: The clip or its file, as the row names it.
        clip: Id that the row gives to the clip, where it names the file as well.
        key: A second name by which the clip may be found.
        label: Emotion, as the file names it.
        text: Transcript.
        speaker: Name of the speaker.
        gender: Gender of the speaker.
        split: One of the manifest's splits.
        start: Seconds within the file at which the clip begins.
        end: Seconds at which it ends.
        valence, arousal, sentiment: Numbers, as those of `Clip`.
    """

    name: str
    clip: str | None = None
    key: str | None = None
    label: str | None = None
    text: str | None = None
    speaker: str | None = None
    gender: str | None = None
    split: str | None = None
    start: float | None = None
    end: float | None = None
    valence: float | None = None
    arousal: float | None = None
    sentiment: float | None = None

    @property
    def is_labelled(self) -> bool:
        """Return whether the row has a label or a number."""
        return bool(self.label) or any(getattr(self, name) is not None for name in NUMBERS)

    @property
    def is_segment(self) -> bool:
        """Return whether the clip is a part of its file."""
        return self.start is not None or self.end is not None


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The rows of a file.

    Attributes:
        path: Of the file, for messages.
        rows: In the order of the file.
        notes: Sentences on how the file was read, for the user.
    """

    path: Path
    rows: tuple[Annotation, ...]
    notes: tuple[str, ...] = ()

    def labelled(self) -> dict[str, Annotation]:
        """Return the rows that have a label or a number, by name; of several rows of one name the last."""
        return {row.name: row for row in self.rows if row.is_labelled}


@dataclass(frozen=True, kw_only=True)
class AnnotatedManifest:
    """A manifest joined with the rows of a file.

    Attributes:
        manifest: The clips with what the rows say of them.
        unmatched: Names of the rows that are of no clip of the manifest.
    """

    manifest: Manifest
    unmatched: list[str]


def annotate(manifest: Manifest, annotations: Annotations) -> AnnotatedManifest:
    """Join the rows of a file to the clips that they name.

    A row finds its clip by the id, the file name or a path, whose folders may be those of another machine (see
    `ClipIndex`). Rows with `start` or `end` become clips of their own in the place of their file's. Raises one
    MertoolError for all rows that contradict each other or fit several clips, or if no row is of any clip.
    """
    faults: list[str] = []
    rows_of, unmatched = _match_rows(manifest, annotations.rows, faults)
    if not rows_of and not faults:
        raise MertoolError(
            f"{annotations.path} names {count_of(len(annotations.rows), 'clip')}, none of which is in "
            f"{manifest.source} (there: {min(clip.clip for clip in manifest.clips)}, ...; in the file: "
            f"{min((row.name for row in annotations.rows), default='-')}, ...)"
        )
    clips: list[Clip] = []
    for clip in manifest.clips:
        clips += _annotated_clips(clip, rows_of.get(clip.clip, []), faults)
    faults += _id_faults(clips)
    if faults:
        raise combine_errors(str(annotations.path), faults)
    return AnnotatedManifest(manifest=replace(manifest, clips=tuple(clips)), unmatched=unmatched)


def _match_rows(
    manifest: Manifest, rows: Iterable[Annotation], faults: list[str]
) -> tuple[dict[str, list[Annotation]], list[str]]:
    """Return the rows of each clip, and the names of rows of no clip.

    Where rows of several folders have the same file name, those are the clip's that have the most folders in common.
    """
    index = ClipIndex(manifest.clips)
    matches: defaultdict[str, list[tuple[int, Annotation]]] = defaultdict(list)
    unmatched = []
    for row in rows:
        second_name = row.clip or row.key
        try:
            match = index.find(row.name)
            if match is None and second_name:
                match = index.find(second_name)
        except MertoolError as error:
            if second_name not in index.ids:
                faults.append(str(error))
                continue
            match = (second_name, 0)
        if match is None:
            unmatched.append(row.name)
        else:
            matches[match[0]].append((match[1], row))
    rows_of = {}
    for clip, scored in matches.items():
        best = max(score for score, _ in scored)
        rows_of[clip] = [row for score, row in scored if score == best]
        unmatched += [row.name for score, row in scored if score < best]
    return rows_of, unmatched


def _annotated_clips(clip: Clip, rows: list[Annotation], faults: list[str]) -> list[Clip]:
    """Return the clip with what its rows say, or the clips of the segments that they name."""
    if not any(row.is_segment for row in rows):
        return [_merge(clip, rows, faults)] if rows else [clip]
    if not all(row.is_segment for row in rows):
        faults.append(f"'{clip.clip}' has rows with start and end, and one without")
    segments: defaultdict[tuple[object, ...], list[Annotation]] = defaultdict(list)
    for row in rows:
        segments[(row.clip, row.start, row.end)].append(row)
    segment_clips = []
    for (_, start, end), same in segments.items():
        name = f"{clip.clip}@{_format_time(start)}-{_format_time(end)}" if len(segments) > 1 else clip.clip
        segment_clips.append(_merge(replace(clip, clip=name, start=same[0].start, end=same[0].end), same, faults))
    return segment_clips


def _format_time(seconds: object) -> str:
    return "" if seconds is None else f"{seconds:g}"


def _merge(clip: Clip, rows: list[Annotation], faults: list[str]) -> Clip:
    """Return the clip with the values of its rows; two different values of one field are a fault."""
    values: dict[str, Any] = {}
    for name in ("clip", *MERGED_FIELDS):
        for row in rows:
            value = getattr(row, name)
            if value not in (None, "") and values.setdefault(name, value) != value:
                faults.append(f"'{clip.clip}' has the {name} '{values[name]}' and '{value}'")
    return replace(clip, **values)


def _id_faults(clips: Iterable[Clip]) -> list[str]:
    """Return the faults of ids that rows gave to clips."""
    faults, ids = [], set()
    for clip in clips:
        faults += clip_id_faults(clip.clip)
        if clip.clip in ids:
            faults.append(f"two clips have the id '{clip.clip}'")
        ids.add(clip.clip)
    return faults


def fill_splits(manifest: Manifest) -> Manifest:
    """Return the manifest of a labelled corpus: a labelled clip without a split is `train`, others `unlabelled`.

    A number is a label, too.
    """
    clips = (replace(c, split=c.split or ("train" if c.label or c.numbers else "unlabelled")) for c in manifest.clips)
    return replace(manifest, clips=tuple(clips))


def with_speakers(manifest: Manifest, speaker_of: Mapping[str, str]) -> Manifest:
    """Return the manifest with these speakers by clip id; other clips keep theirs."""
    clips = (replace(clip, speaker=speaker_of.get(clip.clip, clip.speaker)) for clip in manifest.clips)
    return replace(manifest, clips=tuple(clips))

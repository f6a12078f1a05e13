"""`read_corpus`: the manifest and the folds of an unpacked corpus."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mertool import registry
from mertool.corpora._card import KIND, PACKAGE, CorpusCard, corpus_card
from mertool.corpora._labels import LabelScheme, check_labels, describe_other, make_scheme
from mertool.corpora._release import CorpusClip, Release
from mertool.errors import MertoolError, combine_errors, count_of
from mertool.files import write_atomic
from mertool.manifest import EMOTIONS, Clip, Manifest, clip_id_faults

# A corpus that lacks more is only half unpacked. Releases lack a few clips: MELD has two that cannot be read.
MAX_MISSING = 0.01


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The clips of a corpus.

    Attributes:
        manifest: Clips of the classes, with notes for the user.
        classes: In index order, which later commands need as `--classes`.
        folds: The fold that holds a clip out, by clip id; empty for a corpus with splits.
        card: What is known of the corpus.
    """

    manifest: Manifest
    classes: tuple[str, ...]
    folds: Mapping[str, str]
    card: CorpusCard


def read_corpus(
    name: str,
    folder: Path,
    *,
    classes: tuple[str, ...] | None = None,
    map_labels: bool = False,
    partial: bool = False,
) -> Corpus:
    """Read an unpacked corpus.

    classes: another set than the corpus' own; clips of other labels are left out. map_labels: labels become the six
    emotions of MER. partial: take what is there of a corpus that is only half unpacked. Raises MertoolError for a
    folder that is another one, lacks more than 1 % of the clips, or has labels that the label map lacks.
    """
    card = corpus_card(name)
    scheme = _choose_scheme(card, classes, map_labels=map_labels)
    release = Release(folder, title=card.title, layout=card.layout)
    try:
        rows = list(registry.load(PACKAGE, KIND, name).read(release))
    except ValueError as error:
        raise MertoolError(f"{folder} cannot be read as {card.title} ({error}): is it another release?") from error
    notes = _check_complete(card, release, rows, partial=partial)
    check_labels((row.label for row in rows), card.labels, card.title)
    found = [row for row in rows if row.files]
    # A sentiment of zero is of no class, but a target all the same.
    kept = [row for row in found if scheme.class_of[row.label] or card.target == "sentiment"]
    clips = [(_make_clip(release, row, scheme), row) for row in kept]
    if not any(clip.label for clip, _ in clips):
        raise MertoolError(f"{folder}: no clip has a label of the classes {', '.join(scheme.classes)}")
    _check_ids(folder, [clip for clip, _ in clips])
    other = [card.labels[row.label] for row in found if not scheme.class_of[row.label]]
    notes += [describe_other(other, kept=card.target == "sentiment")] if other else []
    manifest = Manifest(tuple(clip for clip, _ in clips), folder, tuple(notes)).named_in_utf8()
    named = {clip.clip for clip in manifest.clips}
    folds = {clip.clip: row.fold for clip, row in clips if row.fold and clip.clip in named}
    return Corpus(manifest=manifest, classes=scheme.classes, folds=folds, card=card)


def _choose_scheme(card: CorpusCard, classes: tuple[str, ...] | None, *, map_labels: bool) -> LabelScheme:
    if map_labels and not card.mer_classes:
        raise MertoolError(
            f"{card.name} is labelled with {card.target} ({', '.join(card.label_names)}), which is no emotion of MER: "
            "leave out --map-labels"
        )
    if map_labels:
        # A name without an emotion of MER becomes empty, which is no class.
        labels = {label: card.mer_classes.get(name, "") for label, name in card.labels.items()}
        scheme = make_scheme(labels, {}, classes=classes or EMOTIONS, chosen=classes is not None)
    else:
        scheme = make_scheme(card.labels, card.merge, classes=classes or card.classes, chosen=classes is not None)
    return scheme


def _check_complete(card: CorpusCard, release: Release, rows: Sequence[CorpusClip], *, partial: bool) -> list[str]:
    """Return notes on clips that are missing and files that are left out; raise MertoolError for too many missing."""
    found = sum(bool(row.files) for row in rows)
    expected = max(card.clips or 0, len(rows))
    first = next((f" (first missing: {row.clip})" for row in rows if not row.files), "")
    if not found:
        raise release.not_this_corpus("media file of a clip")
    notes = list(release.notes)
    if found < expected:
        described = f"{found} of the {expected} clips of {card.title} are in {release.folder}{first}"
        if expected - found > MAX_MISSING * expected and not partial:
            raise MertoolError(f"{described}: unpack the rest, or take what is there with --partial")
        notes.append(described)
    used = {path for row in rows for path in row.files}
    spare = [path for path in release.media if path not in used]
    if spare:
        first_spare = spare[0].relative_to(release.folder)
        notes.append(f"{count_of(len(spare), 'media file')} of no clip of {card.name} left out (first: {first_spare})")
    return notes


def _make_clip(release: Release, row: CorpusClip, scheme: LabelScheme) -> Clip:
    path, audio = release.pair(row.files)
    return Clip(
        clip=row.clip or path.stem,
        path=path,
        audio=audio,
        label=scheme.class_of[row.label],
        text=row.text or None,
        speaker=row.speaker or None,
        gender=row.gender or None,
        split=row.split or "train",
        valence=row.valence,
        arousal=row.arousal,
        sentiment=row.sentiment,
    )


def _check_ids(folder: Path, clips: Sequence[Clip]) -> None:
    """Raise MertoolError for ids that are not valid, or that two clips have."""
    faults = [fault for clip in clips for fault in clip_id_faults(clip.clip)]
    counts = Counter(clip.clip for clip in clips)
    faults += [f"{count} clips have the id '{name}'" for name, count in counts.items() if count > 1]
    if faults:
        raise combine_errors(str(folder), faults, max_listed=5)


def write_corpus_folds(corpus: Corpus, path: Path) -> None:
    """Write the folds as a CSV `clip,fold`, which `--folds` reads."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["clip", "fold"])
    writer.writerows(corpus.folds.items())
    write_atomic(path, buffer.getvalue())

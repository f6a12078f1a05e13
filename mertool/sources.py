"""Clips of several sources: manifests, folders, and single media files."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mertool.errors import MertoolError
from mertool.manifest import AUDIO_SUFFIXES, VIDEO_SUFFIXES, Clip, Manifest, printable_id, unused_id


def read_sources(sources: Sequence[Path]) -> Manifest:
    """Return the clips of all sources, in their order; a file that several of them name counts once.

    Clip ids are those of each source alone. Where two sources use one id for different clips, both clips are named
    after their files instead: `a/x.mp4` and `b/x.mp4` become `a__x` and `b__x`, whatever the order of the sources.
    """
    manifests = [read_source(source) for source in sources]
    if not manifests:
        raise MertoolError("no source was given: give a manifest CSV, folders, or video and audio files")
    if len(manifests) == 1:
        return manifests[0]
    clip_of_media: dict[tuple[object, ...], Clip] = {}
    for manifest in manifests:
        for clip in manifest.clips:
            clip_of_media.setdefault(_media_of(clip), clip)
    clips = _with_unique_ids(list(clip_of_media.values()))
    notes = [note for manifest in manifests for note in manifest.notes]
    return Manifest(tuple(clips), Path(", ".join(map(str, sources))), tuple(notes))


def read_source(source: Path) -> Manifest:
    """Return the clips of a manifest CSV or of a folder, or the one clip of a media file."""
    if source.is_file() and source.suffix.lower() in VIDEO_SUFFIXES | AUDIO_SUFFIXES:
        return Manifest((Clip(clip=printable_id(source.stem), path=source),), source)
    return Manifest.read(source)


def _media_of(clip: Clip) -> tuple[object, ...]:
    """Return a value that is equal for clips of the same part of the same file."""
    if not (clip.files and clip.files[0].is_file()):
        return clip.files, clip.clip
    return clip.files[0].resolve(), clip.start, clip.end


def _with_unique_ids(clips: Sequence[Clip]) -> list[Clip]:
    """Rename the clips that share an id with another one."""
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, clip in enumerate(clips):
        rows_of[clip.clip].append(row)
    used = {name for name, rows in rows_of.items() if len(rows) == 1}
    renamed = list(clips)
    for rows in rows_of.values():
        if len(rows) == 1:
            continue
        for row, name in zip(rows, _distinct_names([clips[row] for row in rows]), strict=True):
            unique = unused_id(name, used)
            used.add(unique)
            renamed[row] = replace(clips[row], clip=unique)
    return renamed


def _distinct_names(clips: list[Clip]) -> list[str]:
    """Return a name for each clip, of as few folders of its path as tell the clips apart, joined by `__`."""
    paths = [(clip.files or (Path(clip.clip),))[0].absolute() for clip in clips]
    for with_suffix in (False, True):
        parts = [(path if with_suffix else path.with_suffix("")).parts[1:] for path in paths]
        for depth in range(2, max(map(len, parts)) + 1):
            names = [printable_id("__".join(tail[-depth:])) for tail in parts]
            if len(set(names)) == len(names):
                return names
    return [printable_id(f"{path.parent.name}__{clip.clip}") for path, clip in zip(paths, clips, strict=True)]

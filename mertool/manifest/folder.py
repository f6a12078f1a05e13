"""A folder as a manifest: its media files, each once, and one clip for a video file and the audio file beside it."""

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mertool.errors import MertoolError, count_of
from mertool.manifest.clips import Clip
from mertool.manifest.names import printable_id, unused_id
from mertool.manifest.suffixes import (
    AUDIO_SUFFIXES,
    KIND_FOLDERS,
    LOSSLESS_SUFFIXES,
    UNSUPPORTED_SUFFIXES,
    VIDEO_SUFFIXES,
)
from mertool.tables import normalize


@dataclass(frozen=True, kw_only=True)
class FolderContent:
    """The media files of a folder.

    files: each real file once, in a stable order.
    notes: sentences about files that are left out, for the user.
    """

    files: list[Path]
    notes: list[str] = field(default_factory=list)


def find_clips(folder: Path) -> tuple[tuple[Clip, ...], tuple[str, ...]]:
    """Return a clip for each media file below `folder`, and notes for the user.

    Hidden files are passed over. A video file and an audio file of the same name in the same place (see `pair_files`)
    are one clip. Raises MertoolError if there is no media file.
    """
    content = list_media_files(folder)
    if not content.files:
        known = " ".join(sorted(VIDEO_SUFFIXES | AUDIO_SUFFIXES))
        reasons = "".join(f"; {note}" for note in content.notes)
        raise MertoolError(f"{folder} holds no video or audio file (searched recursively for {known}){reasons}")
    _check_locale(content.files)
    audio_of, spare = pair_files(folder, content.files)
    paths = [path for path in content.files if path not in spare]
    names = unique_names(folder, paths)
    clips = tuple(Clip(clip=name, path=path, audio=audio_of.get(path)) for name, path in zip(names, paths, strict=True))
    return clips, (*content.notes, *_describe_pairs(folder, audio_of, spare))


def list_media_files(folder: Path) -> FolderContent:
    """Search a folder for media files; a file that is there by several links is listed once, by its own name."""
    files, notes = walk_files(folder, VIDEO_SUFFIXES | AUDIO_SUFFIXES | UNSUPPORTED_SUFFIXES)
    # Links come after real files, so that the one that is kept is the file itself.
    files.sort(key=lambda path: path.is_symlink())
    first_path: dict[object, Path] = {}
    copies = []
    for path in files:
        if first_path.setdefault(_identity(path), path) is not path:
            copies.append(path)
    unsupported = [path for path in first_path.values() if path.suffix.lower() in UNSUPPORTED_SUFFIXES]
    media = [path for path in first_path.values() if path.suffix.lower() not in UNSUPPORTED_SUFFIXES]
    if copies:
        notes.append(
            f"{_count(copies, 'link')} to files that are in the folder anyway left out{_first(folder, copies)}"
        )
    if unsupported:
        kinds = " ".join(sorted({path.suffix.lower() for path in unsupported}))
        notes.append(
            f"{_count(unsupported, 'media file')} of kinds that mertool does not read left out "
            f"({kinds}){_first(folder, unsupported)}: convert them to .wav or .mp4"
        )
    return FolderContent(files=sorted(media, key=_reading_order), notes=notes)


def walk_files(folder: Path, suffixes: Collection[str]) -> tuple[list[Path], list[str]]:
    """Return all files with one of the suffixes that are not hidden, and notes on folders that cannot be read.

    Each folder is searched once; linked folders come after the others, so that a file keeps the path without a link.
    """
    files: list[Path] = []
    notes: list[str] = []
    searched = set()
    pending = [folder]

    def report(error: OSError) -> None:
        notes.append(f"cannot read the folder {error.filename}: {error.strerror}")

    while pending:
        for root, folders, names in os.walk(pending.pop(0), onerror=report):
            identity = _identity(Path(root))
            if identity in searched:
                folders.clear()
                continue
            searched.add(identity)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            pending += [Path(root, name) for name in folders if os.path.islink(os.path.join(root, name))]
            paths = [Path(root, name) for name in names if not name.startswith(".")]
            files += sorted(path for path in paths if path.suffix.lower() in suffixes)
    return files, notes


def _identity(path: Path) -> object:
    """Return what is equal for two paths of one file; a link that leads nowhere is a file of its own."""
    try:
        status = path.stat()
    except OSError:
        return path
    # Some network file systems number no files.
    return (status.st_dev, status.st_ino) if status.st_ino else path


def _reading_order(path: Path) -> tuple[tuple[int, str], ...]:
    """Sort key: the files of a folder come before its folders."""
    return (*((1, name) for name in path.parent.parts), (0, path.name))


def pair_files(folder: Path, files: Sequence[Path]) -> tuple[dict[Path, Path], set[Path]]:
    """Return the audio file of each video file that has one, and the audio files that are no clips of their own.

    They belong together if they have the same stem and lie in one folder, or in folders that differ only in words for
    the kind of their files (`video/a.mp4` and `audio/a.wav`), and if the video file is the only one. Of several audio
    files, a lossless one in the folder of the video is taken first.
    """
    groups: defaultdict[tuple[object, ...], list[Path]] = defaultdict(list)
    for path in files:
        folders = path.relative_to(folder).parent.parts
        places = tuple(name for name in folders if name.lower() not in KIND_FOLDERS)
        groups[(places, normalize(path.stem))].append(path)
    audio_of, spare = {}, set()
    for group in groups.values():
        videos = [path for path in group if path.suffix.lower() in VIDEO_SUFFIXES]
        sounds = [path for path in group if path.suffix.lower() in AUDIO_SUFFIXES]
        if len(videos) == 1 and sounds:
            video = videos[0]
            audio_of[video] = min(sounds, key=lambda path: (_compression(path), path.parent != video.parent, path))
            spare |= set(sounds)
    return audio_of, spare


def _compression(path: Path) -> int:
    """Return the rank of a suffix: lossless audio comes first."""
    suffix = path.suffix.lower()
    return LOSSLESS_SUFFIXES.index(suffix) if suffix in LOSSLESS_SUFFIXES else len(LOSSLESS_SUFFIXES)


def _describe_pairs(folder: Path, audio_of: dict[Path, Path], spare: set[Path]) -> list[str]:
    if not audio_of:
        return []
    video, audio = next(iter(audio_of.items()))
    unused = sorted(spare - set(audio_of.values()))
    notes = [
        f"{_count(audio_of, 'clip')} from two files: the picture of the video file, the sound of the audio file of the "
        f"same name (first: {_show(folder, video)} and {_show(folder, audio)})"
    ]
    if unused:
        notes.append(
            f"{_count(unused, 'audio file')} beside a better one of the same name left out{_first(folder, unused)}"
        )
    return notes


def unique_names(folder: Path, paths: Sequence[Path]) -> list[str]:
    """Return a clip id for each file: its stem, in which characters that cannot be printed become `_`.

    Where two files share it, it is the relative path with `__` for `/`, and with the suffix if that is shared too.
    """
    stems = Counter(normalize(path.stem) for path in paths)
    joined = Counter(_joined_name(folder, path) for path in paths)
    ids: list[str] = []
    assigned: set[str] = set()
    for path in paths:
        name = normalize(path.stem)
        if stems[name] > 1:
            name = _joined_name(folder, path)
            if joined[name] > 1:
                name += path.suffix
        identifier = unused_id(printable_id(name), assigned)
        assigned.add(identifier)
        ids.append(identifier)
    return ids


def _joined_name(folder: Path, path: Path) -> str:
    return normalize("__".join(path.relative_to(folder).with_suffix("").parts))


def _check_locale(files: Iterable[Path]) -> None:
    """Raise MertoolError if names are in UTF-8 and the locale's encoding is another one."""
    encoding = sys.getfilesystemencoding()
    misread = [] if encoding.lower() in ("utf-8", "utf8") else [path for path in files if _is_misread(path)]
    if misread:
        raise MertoolError(
            f"this locale has the encoding {encoding}, in which the names of {_count(misread, 'file')} cannot be read "
            f"(first: {printable_path(misread[0])}): set LC_ALL=C.UTF-8 or PYTHONUTF8=1 and run the command again"
        )


def _is_misread(path: Path) -> bool:
    """Return whether the bytes of a name are UTF-8, which a locale with another encoding takes for something else."""
    name = os.fsencode(path)
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return not name.isascii()


def is_utf8(path: Path) -> bool:
    """Return whether a path can be written in UTF-8; file names are bytes on Linux, and may be in any encoding."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def printable_path(path: Path) -> str:
    """Return a path in which everything that cannot be printed is escaped: `clips/\\xb2\\xe2.mp4`."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _count(items: Sequence[object] | dict[Path, Path], noun: str) -> str:
    return count_of(len(items), noun)


def _first(folder: Path, paths: Sequence[Path]) -> str:
    return f" (first: {_show(folder, paths[0])})"


def _show(folder: Path, path: Path) -> str:
    return printable_path(path.relative_to(folder))

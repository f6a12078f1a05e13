"""Names of clips: what an id may be, and which clip a name in a label table or a list means."""

from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath

from mertool.errors import MertoolError
from mertool.manifest.clips import Clip
from mertool.manifest.suffixes import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from mertool.tables import normalize


def clip_id_faults(name: str) -> list[str]:
    """Return the faults of a clip id, which is printable, holds no `/` and is not empty."""
    if not name:
        return ["clip id is empty"]
    if "/" in name or not name.isprintable():
        return [f"clip id {name!r} must be printable and hold no '/'"]
    return []


def printable_id(name: str) -> str:
    """Return `name` as a clip id: characters that cannot be printed become `_`."""
    return "".join(char if char.isprintable() else "_" for char in name).strip() or "_"


def unused_id(name: str, used: Container[str]) -> str:
    """Return `name`, with the first number from 2 on that makes it differ from all that are used, if it is one."""
    identifier, number = name, 1
    while identifier in used:
        number += 1
        identifier = f"{name}_{number}"
    return identifier


def clip_id(name: str | None) -> str:
    """Return the clip id of a file name: its last part without the suffix of a media file, but with other dots.

    >>> clip_id("sample_1.mp4"), clip_id("v1.2"), clip_id("C:\\\\clips\\\\a.wav")
    ('sample_1', 'v1.2', 'a')
    """
    return _split_name(name or "")[-1]


def _split_name(name: str) -> tuple[str, ...]:
    """Return the folders and the stem of a path as it is written on any system: `./x/a.wav` is ('x', 'a')."""
    components = [
        component for component in normalize(name).replace("\\", "/").split("/") if component not in ("", ".")
    ]
    if not components:
        return ("",)
    suffix = PurePosixPath(components[-1]).suffix
    if suffix.lower() in AUDIO_SUFFIXES | VIDEO_SUFFIXES:
        components[-1] = components[-1][: -len(suffix)]
    return tuple(components)


@dataclass(frozen=True)
class _MediaFile:
    """A file of a clip: the components of its absolute path, without the suffix, and the suffix in lower case."""

    clip: str
    components: tuple[str, ...]
    suffix: str


class ClipIndex:
    """Finds the clip that a name means: its id, its file name, or a path that ends like that of its files."""

    def __init__(self, clips: Iterable[Clip]):
        self.ids: set[str] = set()
        # By the stem, and by the folder and the stem: a corpus may have thousands of files named audio.wav.
        self._files: defaultdict[tuple[str, ...], list[_MediaFile]] = defaultdict(list)
        for clip in clips:
            self.ids.add(clip.clip)
            for path in (clip.path, clip.audio):
                if path is not None:
                    components = _split_name(str(path.absolute()))
                    file = _MediaFile(clip.clip, components, path.suffix.lower())
                    self._files[components[-1:]].append(file)
                    self._files[components[-2:]].append(file)

    def find(self, name: str) -> tuple[str, int] | None:
        """Return the id of the clip, and how many folders of the name are those of its file; None without a clip.

        Where several files have the same stem, the one with the most folders in common is meant. Raises MertoolError
        if that is not one clip.
        """
        components = _split_name(name)
        files = self._files.get(components[-2:]) or self._files.get(components[-1:], [])
        if len(components) == 1 or not files:
            for identifier in (normalize(name), components[-1], "__".join(components)):
                if identifier in self.ids:
                    return identifier, 0
        if not files:
            return None
        suffix = PurePosixPath(normalize(name)).suffix.lower()
        scores = [(_count_common_folders(components, file.components), file.suffix == suffix) for file in files]
        best = max(scores)
        clips = list(dict.fromkeys(file.clip for file, score in zip(files, scores, strict=True) if score == best))
        if len(clips) > 1:
            raise MertoolError(f"'{name}' may be {' or '.join(map(repr, clips[:3]))}: name it with its folder")
        return clips[0], best[0]


def _count_common_folders(name: tuple[str, ...], path: tuple[str, ...]) -> int:
    """Return how many folders before the stem are the same in both."""
    common = zip(reversed(name[:-1]), reversed(path[:-1]), strict=False)
    return sum(1 for _ in takewhile(lambda folders: folders[0] == folders[1], common))

"""`Release`: the folder of an unpacked corpus, with its media files, tables and texts."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mertool.errors import MertoolError
from mertool.manifest import VIDEO_SUFFIXES
from mertool.manifest.folder import list_media_files, walk_files
from mertool.manifest.suffixes import LOSSLESS_SUFFIXES
from mertool.tables import normalize, read_table, read_text

TABLE_SUFFIXES = frozenset((".csv", ".tsv", ".txt"))


@dataclass(frozen=True, kw_only=True)
class CorpusClip:
    """A clip as the corpus describes it.

    Attributes:
        files: Its video file, its audio file or both, in any order; empty if they are not there.
        label: The corpus' own label, a key of LABELS.
        clip: Id; default: the name of its file.
        text: Transcript.
        speaker: Name of the speaker.
        gender: female or male.
        split: train, dev or test, of corpora with splits.
        fold: The fold that holds it out, of corpora with folds.
        valence, arousal, sentiment: Numbers, as those of `Clip`.
    """

    files: Sequence[Path]
    label: str
    clip: str | None = None
    text: str | None = None
    speaker: str | None = None
    gender: str | None = None
    split: str | None = None
    fold: str | None = None
    valence: float | None = None
    arousal: float | None = None
    sentiment: float | None = None


class Release:
    """An unpacked corpus, searched once for media files.

    Attributes:
        folder: The folder that the user gave.
        title: Of the corpus, for messages.
        layout: Of the corpus, for messages.
        media: Its media files, each once, in a stable order.
        tables: Its tables and texts, in a stable order.
        notes: Sentences on files that cannot be read, for the user.
    """

    def __init__(self, folder: Path, *, title: str, layout: str):
        if not folder.is_dir():
            raise MertoolError(f"{folder} is not a folder: give the folder where {title} is unpacked")
        self.folder, self.title, self.layout = folder, title, layout
        content = list_media_files(folder)
        self.media, self.notes = content.files, content.notes
        self.tables = sorted(walk_files(folder, TABLE_SUFFIXES)[0], key=lambda path: (len(path.parts), path))
        self._suffixes = Counter(path.suffix.lower() for path in self.media)

    def match(self, pattern: str) -> Iterator[tuple[tuple[str, ...], list[Path]]]:
        """Yield the groups of a regular expression and the files of one clip, for file stems that it matches.

        Files with the same groups are of one clip: what tells its files apart stays outside the groups.
        """
        regex = re.compile(pattern)

        def groups(path: Path) -> tuple[str, ...] | None:
            match = regex.fullmatch(normalize(path.stem))
            return match.groups() if match else None

        yield from self.group(groups).items()  # type: ignore[misc]

    def group(self, key: Callable[[Path], Hashable | None]) -> dict[Hashable, list[Path]]:
        """Return the media files by a key of theirs; files whose key is None are of no clip."""
        files: defaultdict[Hashable, list[Path]] = defaultdict(list)
        for path in self.media:
            if (value := key(path)) is not None:
                files[value].append(path)
        return files

    def rows(self, name: str, *columns: str, required: bool = True) -> list[dict[str, str]]:
        """Return the rows of a table that lies anywhere in the folder, with cells by column in lower case.

        `name` is its name, the end of its path, or a pattern of them; the one that lies highest is read. Raises
        MertoolError if it lacks one of `columns`, or if there is no such table and one is required.
        """
        path = next((path for path in self.tables if path.match(name)), None)
        if path is None:
            if required:
                raise self.not_this_corpus(name)
            return []
        table = read_table(path, f"a table of {self.title}")
        missing = [column for column in columns if column not in table.columns]
        if missing:
            raise MertoolError(
                f"{path} is not the table of {self.title}: it has no column {missing[0]} (it has "
                f"{', '.join(table.columns)[:200]})"
            )
        return [{column: normalize(cell) for column, cell in row.items()} for row in table.rows]

    def texts(self, pattern: str, *, required: bool = True) -> Iterator[tuple[str, str]]:
        """Yield the stem and the content of the text files of a pattern, such as `transcriptions/*.txt`."""
        paths = [path for path in self.tables if path.match(pattern)]
        if required and not paths:
            raise self.not_this_corpus(pattern)
        for path in paths:
            yield path.stem, read_text(path, f"a text of {self.title}")[0]

    def not_this_corpus(self, name: str) -> MertoolError:
        """Return the error of a folder that lacks a file of the corpus."""
        return MertoolError(
            f"{self.folder} is not {self.title}, or not all of it: it holds no {name}. Give the folder that holds "
            f"{self.layout}"
        )

    def pair(self, files: Sequence[Path]) -> tuple[Path, Path | None]:
        """Return the file of a clip, and the one that its audio is read from if that is another.

        Of several files of one kind that comes first whose format most files of the corpus have, then lossless audio.
        """
        ordered = sorted(files, key=self._preference)
        videos = [path for path in ordered if path.suffix.lower() in VIDEO_SUFFIXES]
        sounds = [path for path in ordered if path not in videos]
        return (videos or sounds)[0], sounds[0] if videos and sounds else None

    def _preference(self, path: Path) -> tuple[int, bool]:
        suffix = path.suffix.lower()
        return -self._suffixes[suffix], suffix not in LOSSLESS_SUFFIXES

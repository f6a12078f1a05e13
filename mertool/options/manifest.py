"""Options of the command `manifest`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mertool.manifest import EMOTIONS, parse_classes
from mertool.options.option import Options, option
from mertool.options.shared import check_classes


@dataclass(frozen=True, kw_only=True)
class ManifestOptions(Options):
    """Files with facts about the clips of a folder."""

    labels: Path | None = option(
        None,
        help="Labels: CSV (name,label, ...), label-6way.npz of MERTools, or a .jsonl or fold folder of EmoBox.",
    )
    transcripts: Path | None = option(None, help="Transcripts: CSV (name,chinese or clip,text).")
    language: str | None = option(
        None,
        help="Language of the transcripts, where the file has a column for each.",
        choices=("chinese", "english"),
    )
    speakers: str | None = option(
        None,
        help=r"Pattern of clip ids whose first group is the speaker, such as '^(spk\d+)_'.",
        metavar="REGEX",
    )
    classes: tuple[str, ...] | None = option(
        None,
        help="Class names, comma-separated; labels that are numbers are indices of these names.",
        metavar="NAMES",
        parse=parse_classes,
        validate=check_classes,
        default_help=", ".join(EMOTIONS),
    )

    def conflicts(self) -> Iterator[str]:
        """A language without transcripts."""
        if self.language and not self.transcripts:
            yield "--language is of --transcripts: give both"

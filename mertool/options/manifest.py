"""Options of the command `manifest`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mertool import registry
from mertool.manifest import EMOTIONS, parse_classes
from mertool.options.option import Options, option
from mertool.options.shared import check_classes


@dataclass(frozen=True, kw_only=True)
class ManifestOptions(Options):
    """Sources of labels, transcripts and speakers for the clips of a folder: a corpus by name, or files of labels."""

    corpus: str | None = option(
        None,
        help="Read labels, speakers, transcripts and folds or splits from the layout of an unpacked corpus.",
        choices=lambda: registry.choices("corpora"),
        group="Corpora",
    )
    map_labels: bool = option(
        False, help="Map the labels of the corpus to the six emotions of MER; others are left out.", group="Corpora"
    )
    partial: bool = option(False, help="Accept a corpus of which clips are missing.", group="Corpora")
    labels: Path | None = option(
        None,
        help="Labels: CSV (name,label, ...), label-6way.npz of MERTools, .pkl of MMSA, .jsonl or fold folder of "
        "EmoBox, or a folder of Hugging Face datasets or audformat.",
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
        """Options of a file or of a corpus that is not given."""
        if self.language and not self.transcripts:
            yield "--language is of --transcripts: give both"
        if self.corpus and self.labels:
            yield f"--corpus {self.corpus} reads the labels of the corpus: leave out --labels, or --corpus"
        for given, flag in ((self.map_labels, "--map-labels"), (self.partial, "--partial")):
            if given and not self.corpus:
                yield f"{flag} is of --corpus: give both"

"""Options of the command `manifest`."""

from dataclasses import dataclass
from pathlib import Path

from mertool.options import shared
from mertool.options.option import Options, option


@dataclass(frozen=True, kw_only=True)
class ManifestOptions(Options):
    """Files with facts about the clips of a folder."""

    labels: Path | None = option(None, help="Labels: CSV (name,discrete or clip,label) or label-6way.npz of MERTools.")
    transcripts: Path | None = option(None, help="Transcripts: CSV (name,chinese or clip,text).")
    speakers: str | None = option(
        None,
        help=r"Pattern of clip ids whose first group is the speaker, such as '^(spk\d+)_'.",
        metavar="REGEX",
    )
    classes: tuple[str, ...] = shared.classes()

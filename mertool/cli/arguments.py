"""Arguments and options that several commands have, and that are no options of a stage."""

from pathlib import Path
from typing import Annotated

import typer

SourceArgument = Annotated[Path, typer.Argument(help="Manifest CSV, or a folder searched for video and audio files.")]
SourcesArgument = Annotated[
    list[Path], typer.Argument(help="Manifest CSVs, folders searched for video and audio files, or such files.")
]
ManifestOption = Annotated[Path, typer.Option("--manifest", "-m", help="Manifest CSV with the labels.")]
RunOutput = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run to write.")]
StoreOutput = Annotated[Path, typer.Option("--output", "-o", help="Feature store (HDF5) to write.")]
MaxFailed = Annotated[float, typer.Option(min=0, max=1, help="Exit with 3 if a larger share of the clips failed.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no tables.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")]

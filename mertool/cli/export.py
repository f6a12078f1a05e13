"""`mertool export`: a manifest as a folder that Hugging Face `datasets` loads."""

from pathlib import Path
from typing import Annotated

import typer

from mertool.cli.arguments import Json, Quiet, SourceArgument
from mertool.cli.console import echo, print_json
from mertool.cli.source import read_source
from mertool.errors import count_of

EXAMPLE = "Example: mertool export clips.csv -o my-dataset"


def export(
    *,
    source: SourceArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder of the data set.")],
    parquet: Annotated[bool, typer.Option("--parquet", help="Write metadata.parquet, which needs pyarrow.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write clips as a folder of Hugging Face datasets: media and metadata by split.

    Media are hard links where the file system allows it, else copies.
    """
    from mertool.interop.hf_export import export_manifest

    counts = export_manifest(read_source(source), output, kind="parquet" if parquet else "jsonl")
    if as_json:
        print_json({"folder": str(output), "clips": counts})
    elif not quiet:
        for split, count in counts.items():
            echo(f"{output / split}: {count_of(count, 'clip')}")

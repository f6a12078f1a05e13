"""`mertool models`: the table of encoders."""

from dataclasses import asdict
from typing import Annotated

import typer

from mertool.cli.arguments import Json, Quiet
from mertool.cli.console import print_json, suggest_next, table
from mertool.errors import check_choice

EXAMPLE = "Example: mertool models --modality audio"


def models(
    modality: Annotated[str | None, typer.Option(help="audio, video or text; default: all.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """The encoders that have a short name. Any hub id or local folder of these families works too."""
    from mertool.encoders import DEFAULTS, ENCODERS, FAMILIES

    if modality:
        check_choice("modality", modality, FAMILIES)
    rows = [row for row in ENCODERS if modality in (None, row.modality)]
    if as_json:
        print_json({"encoders": [{**asdict(row), "revision": row.revision} for row in rows], "defaults": DEFAULTS})
    elif not quiet:
        table(
            f"{len(rows)} encoders (* is the default of its modality)",
            ["name", "modality", "checkpoint", "language", "size", "layers", "channels", "revision"],
            [
                [
                    row.name + ("*" if DEFAULTS[row.modality] == row.name else ""),
                    row.modality,
                    row.checkpoint,
                    row.language,
                    row.parameters,
                    row.layers,
                    row.channels,
                    (row.revision or "main")[:10],
                ]
                for row in rows
            ],
        )
        suggest_next("extract", "audio", "MANIFEST", "-o", "features/audio.h5", "--encoder", "NAME")

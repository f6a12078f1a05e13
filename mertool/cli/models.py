"""`mertool models`: the table of encoders."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from mertool.cli.arguments import Json, Quiet
from mertool.cli.console import print_json, suggest_next, table
from mertool.errors import check_choice

EXAMPLE = "Example: mertool models --modality audio"
COLUMNS = ("name", "modality", "checkpoint", "language", "size", "layers", "channels", "revision")


def models(
    modality: Annotated[
        str | None, typer.Option(help="Only encoders of this modality: audio, video or text.", show_default="all")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """List the encoders that have a short name. Any hub id or local folder of these families works too."""
    from mertool.encoders import DEFAULTS, ENCODERS, FAMILIES

    if modality:
        check_choice("modality", modality, FAMILIES)
    encoders = [encoder for encoder in ENCODERS if modality in (None, encoder.modality)]
    if as_json:
        described = [{**asdict(encoder), "revision": encoder.revision} for encoder in encoders]
        print_json({"encoders": described, "defaults": DEFAULTS})
    elif not quiet:
        title = f"{len(encoders)} encoders (* is the default of its modality)"
        table(title, list(COLUMNS), [_row(encoder, set(DEFAULTS.values())) for encoder in encoders])
        suggest_next("extract", "audio", "MANIFEST", "-o", "features/audio.h5", "--encoder", "NAME")


def _row(encoder: Any, defaults: set[str]) -> list[Any]:
    """The cells of an encoder in the order of COLUMNS."""
    name = encoder.name + ("*" if encoder.name in defaults else "")
    facts = [
        encoder.modality,
        encoder.checkpoint,
        encoder.language,
        encoder.parameters,
        encoder.layers,
        encoder.channels,
    ]
    return [name, *facts, (encoder.revision or "main")[:10]]

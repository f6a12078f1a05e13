"""`mertool models`: the table of encoders."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from mertool.cli.arguments import Json, Quiet
from mertool.cli.console import print_json, suggest_next
from mertool.cli.tables import table
from mertool.errors import check_choice, count_of

EXAMPLE = "Example: mertool models --modality audio"
COLUMNS = ("name", "modality", "checkpoint", "language", "size", "layers", "channels", "revision")
FAMILY_COLUMNS = ("family", "modality", "model types")


def models(
    modality: Annotated[
        str | None, typer.Option(help="Only encoders of this modality: audio, video or text.", show_default="all")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """List the encoders that have a short name. Any hub id or local folder of these families works too."""
    from mertool.encoders import DEFAULT_ENCODERS, ENCODERS
    from mertool.encoders.families import known_families

    if modality:
        check_choice("modality", modality, DEFAULT_ENCODERS)
    encoders = [encoder for encoder in ENCODERS if modality in (None, encoder.modality)]
    families = [family for family in known_families().values() if modality in (None, family.modality)]
    if as_json:
        described = [encoder.to_json() for encoder in encoders]
        listed = [asdict(family) for family in families]
        print_json({"encoders": described, "families": listed, "defaults": DEFAULT_ENCODERS})
    elif not quiet:
        title = f"{count_of(len(encoders), 'encoder')} (* is the default of its modality)"
        table(title, list(COLUMNS), [_row(encoder, set(DEFAULT_ENCODERS.values())) for encoder in encoders])
        title = "Families: checkpoints of these model types load by hub id or folder"
        table(title, list(FAMILY_COLUMNS), [_family_row(family) for family in families])
        suggest_next(["extract", "audio", "MANIFEST", "-o", "features/audio.h5", "--encoder", "NAME"])


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


def _family_row(family: Any) -> list[str]:
    """The cells of a family in the order of FAMILY_COLUMNS."""
    return [family.name, family.modality, ", ".join(family.model_types) + (", others" if family.other_types else "")]

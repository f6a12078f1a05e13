"""`mertool corpora`: the corpora that `mertool manifest --corpus` reads."""

from dataclasses import asdict
from typing import Annotated

import typer

from mertool.cli.arguments import Json, Quiet
from mertool.cli.console import echo, print_json, suggest_next
from mertool.cli.tables import table
from mertool.corpora import CorpusCard, corpus_card, corpus_names

EXAMPLE = "Example: mertool corpora iemocap"
COLUMNS = ("name", "language", "modalities", "clips", "classes", "protocol", "licence")


def corpora(
    name: Annotated[str | None, typer.Argument(help="Show all that is known of one corpus.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """List the corpora that `mertool manifest --corpus` reads, with protocol and licence.

    With a name it shows the layout, the label map and the source of that corpus.
    """
    cards = [corpus_card(name) for name in ([name] if name else corpus_names())]
    if as_json:
        print_json({"corpora": [{**asdict(card), "mer_classes": card.mer_classes} for card in cards]})
    elif not quiet and name:
        print_card(cards[0])
    elif not quiet:
        table(f"{len(cards)} corpora", COLUMNS, [_row(card) for card in cards])
        suggest_next(["corpora", "NAME"])


def print_card(card: CorpusCard) -> None:
    """Print what is known of a corpus, a fact a line, and the table of its labels."""
    for fact in ("title", "language", "modalities", "clips", "speakers", "layout", "protocol", "source", "licence"):
        echo(f"{fact}: {_shown(getattr(card, fact))}")
    classes = [card.merge.get(name, name) for name in card.labels.values()]
    rows = [
        [label, name, card_class if card_class in card.classes else "-", card.mer_classes.get(name, "-")]
        for (label, name), card_class in zip(card.labels.items(), classes, strict=True)
    ]
    table("labels (- is left out)", ["label", "name", "class", "with --map-labels"], rows)
    suggest_next(["manifest", "FOLDER", "--corpus", card.name, "-o", "clips.csv"])


def _row(card: CorpusCard) -> list[str]:
    """The cells of a corpus in the order of COLUMNS."""
    facts = (card.language, card.modalities, _shown(card.clips), ", ".join(card.classes), card.protocol, card.licence)
    return [card.name, *facts]


def _shown(value: object) -> str:
    return "depends on the release" if value is None else str(value)

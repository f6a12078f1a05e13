"""`mertool report`: one page of runs and evaluations, with tables for a paper, a model card and a checklist."""

from pathlib import Path
from typing import Annotated

import typer

from mertool.cli.arguments import Json, Quiet
from mertool.cli.console import echo, print_json, warn
from mertool.errors import count_of
from mertool.options.report import ReportOptions

EXAMPLE = "Example: mertool report runs/fusion metrics.json -o report.html"


def report(
    *,
    runs: Annotated[
        list[Path], typer.Argument(help="Runs of any stage, and JSON files of `mertool evaluate`, in any order.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write (.html).")],
    options: ReportOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make one self-contained page of runs, the runs that they were made from, and evaluations.

    Beside NAME.html it writes NAME.json with the same content, NAME.tex with tables for a paper, NAME.model-card.md
    and NAME.checklist.md. The main systems of all given runs are compared by paired tests, corrected by Holm.
    """
    from mertool.report import report as run_stage

    result = run_stage(runs, output, options)
    document = result.document
    if as_json:
        print_json({"files": list(map(str, result.files)), **document})
    elif not quiet:
        parts = [count_of(len(document["runs"]), "run"), count_of(len(document["systems"]), "scored system")]
        echo(f"report of {', '.join(parts)} and {count_of(len(document['tests']), 'paired test')}")
        for part in document["missing"]:
            warn(f"note: {part['run']}: {part['part']} {part['path']}: {part['reason']}")
        echo(f"page: {result.files[0]}")
        echo("beside it: " + " ".join(file.name for file in result.files[1:]))

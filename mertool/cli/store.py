"""`mertool store ls|check|merge`: look into stores, verify them, join them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.arguments import Json, Quiet, StoreOutput
from mertool.cli.console import echo, print_json, table, warn
from mertool.errors import MertoolError
from mertool.features import format_layers

app = typer.Typer(help="Look into feature stores, verify them, join them.", no_args_is_help=True)
Stores = Annotated[list[Path], typer.Argument(help="Feature stores.")]


@app.command("ls", epilog="Example: mertool store ls features/*.h5")
def ls(
    stores: Stores,
    failures: Annotated[bool, typer.Option("--failures", help="List the clips without features.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """What is in each store: recipe, clips, layers, and failures by reason."""
    from collections import Counter

    from mertool.store import FeatureStore

    found: list[dict[str, Any]] = []
    for path in stores:
        with FeatureStore(path) as store:
            failed = store.failures()
            found.append(
                {
                    "store": str(path),
                    "modality": store.recipe.modality,
                    "encoder": store.recipe.encoder,
                    "clips": len(store),
                    "layers": format_layers(store.recipe.layers) + (" summed" if store.recipe.layer_sum else ""),
                    "channels": store.channels,
                    "pool": store.recipe.pool,
                    "adapter": bool(store.recipe.adapter),
                    "fingerprint": store.fingerprint,
                    "without_features": dict(Counter(failure.reason for failure in failed)),
                    "failures": [vars(failure) for failure in failed] if failures else None,
                }
            )
    if as_json:
        print_json({"stores": found})
    elif not quiet:
        columns = ["store", "modality", "encoder", "clips", "layers", "channels", "pool"]
        reasons = [", ".join(f"{n} {reason}" for reason, n in row["without_features"].items()) for row in found]
        rows = [[*(row[c] for c in columns), why] for row, why in zip(found, reasons, strict=True)]
        table(f"{len(found)} stores", [*columns, "without features"], rows)
        for row in found:
            for failure in row["failures"] or []:
                echo(f"{row['store']}: {failure['clip']}: {failure['reason']}: {failure['message']}")


@app.command("check", epilog="Example: mertool store check features/audio.h5")
def check(stores: Stores, quiet: Quiet = False, as_json: Json = False) -> None:
    """Verify stores: shapes, offsets, fingerprint, finite values. Exits with 1 if one is faulty."""
    from mertool.store import FeatureStore

    faults: dict[str, list[str]] = {}
    for path in stores:
        try:
            with FeatureStore(path) as store:
                faults[str(path)] = store.validate()
        except MertoolError as error:
            faults[str(path)] = [str(error)]
    if as_json:
        print_json({"faults": faults})
    elif not quiet:
        for name, wrong in faults.items():
            echo(f"{name}: {', '.join(wrong) or 'sound'}")
    faulty = [name for name, wrong in faults.items() if wrong]
    if faulty:
        raise MertoolError(f"{len(faulty)} of {len(stores)} stores are faulty: extract {', '.join(faulty)} again")


@app.command("merge", epilog="Example: mertool store merge part1.h5 part2.h5 -o audio.h5")
def merge(stores: Stores, output: StoreOutput, quiet: Quiet = False, as_json: Json = False) -> None:
    """Join stores of one recipe, and the transcripts beside them; of a clip that stands in several, the last wins."""
    from mertool.extraction.transcripts import read_rows, transcripts_beside, write_rows
    from mertool.files import check_writable
    from mertool.store import merge_stores

    check_writable(output)
    if output.exists():
        raise MertoolError(f"{output} exists: give another -o, or remove it first")
    count = merge_stores(stores, output)
    sheets = [sheet for store in stores if (sheet := transcripts_beside(store)).exists()]
    if sheets:
        rows = {clip: row for sheet in sheets for clip, row in read_rows(sheet).items()}
        write_rows(transcripts_beside(output), rows.values())
    if as_json:
        print_json({"store": str(output), "clips": count})
    elif not quiet:
        warn(f"joined {len(stores)} stores")
        echo(f"store: {output} ({count} clips)")

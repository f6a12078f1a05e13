"""`mertool store ls|check|merge|import|export`: list, verify and join stores, to and from files of other toolkits."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.arguments import Json, Quiet, StoreOutput
from mertool.cli.console import echo, print_json, printed_warnings, warn
from mertool.cli.help import CommandGroup, HelpCommand
from mertool.cli.tables import table
from mertool.errors import MertoolError, count_of
from mertool.features import format_layers

app = typer.Typer(cls=CommandGroup, help="List, verify, join, import and export feature stores.", no_args_is_help=True)
Stores = Annotated[list[Path], typer.Argument(help="Feature stores.")]


@app.command(cls=HelpCommand, name="ls", epilog="Example: mertool store ls features/*.h5")
def ls(
    *,
    stores: Stores,
    failures: Annotated[bool, typer.Option("--failures", help="List the clips without features.")] = False,
    media: Annotated[
        bool, typer.Option("--media", help="List the facts of each clip's media, and what was lost in decoding it.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """List the recipe, clips and layers of each store, and its failures by reason."""
    contents = [describe_store(path, with_failures=failures, with_media=media) for path in stores]
    if as_json:
        for content in contents:
            content["media"] = content["media"] and {clip: stats.to_json() for clip, stats in content["media"].items()}
        print_json({"stores": contents})
    elif not quiet:
        print_stores(contents)


def describe_store(path: Path, *, with_failures: bool, with_media: bool) -> dict[str, Any]:
    """Return what is in a store; the single failures and the facts of media only on request: there may be many."""
    from mertool.store import FeatureStore

    with FeatureStore(path) as store:
        recipe, failures = store.recipe, store.failures()
        return {
            "store": str(path),
            "modality": recipe.modality,
            "encoder": recipe.encoder,
            "clips": len(store),
            "layers": format_layers(recipe.layers) + (" summed" if recipe.layer_sum else ""),
            "channels": store.channels,
            "storage": str(store.dtype),
            "pool": recipe.pool,
            "adapter": bool(recipe.adapter),
            "fingerprint": store.fingerprint,
            "without_features": dict(Counter(failure.reason for failure in failures)),
            "failures": [vars(failure) for failure in failures] if with_failures else None,
            "media": dict(zip(store.ids, store.media_stats_of_clips(), strict=True)) if with_media else None,
        }


def print_stores(contents: list[dict[str, Any]]) -> None:
    """Print a table with one row per store, and the failures where they were read."""
    columns = ["store", "modality", "encoder", "clips", "layers", "channels", "storage", "pool"]
    rows = []
    for store in contents:
        reasons = ", ".join(f"{count} {reason}" for reason, count in store["without_features"].items())
        rows.append([*(store[column] for column in columns), reasons])
    table(count_of(len(contents), "store"), [*columns, "without features"], rows)
    for store in contents:
        for failure in store["failures"] or []:
            echo(f"{store['store']}: {failure['clip']}: {failure['reason']}: {failure['message']}")
        for clip, stats in (store["media"] or {}).items():
            echo(f"{store['store']}: {clip}: {stats.describe()}")


@app.command(cls=HelpCommand, name="check", epilog="Example: mertool store check features/audio.h5")
def check(stores: Stores, quiet: Quiet = False, as_json: Json = False) -> None:
    """Verify stores: digest of the bytes, structure, finite values. Exits with 1 if one is faulty."""
    from mertool.store import validate_store

    faults_of = {str(path): validate_store(path) for path in stores}
    if as_json:
        print_json({"faults": faults_of})
    elif not quiet:
        for name, faults in faults_of.items():
            echo(f"{name}: {', '.join(faults) or 'valid'}")
    faulty = [name for name, faults in faults_of.items() if faults]
    if faulty:
        raise MertoolError(f"{len(faulty)} of {len(stores)} stores are faulty: extract {', '.join(faulty)} again")


@app.command(cls=HelpCommand, name="merge", epilog="Example: mertool store merge part1.h5 part2.h5 -o audio.h5")
def merge(*, stores: Stores, output: StoreOutput, quiet: Quiet = False, as_json: Json = False) -> None:
    """Join stores of one recipe, and the transcripts beside them; the last store that has a clip provides it."""
    from mertool.extraction.transcripts import read_rows, transcripts_beside, write_rows
    from mertool.files import check_writable
    from mertool.store import merge_stores

    sheets = [sheet for store in stores if (sheet := transcripts_beside(store)).exists()]
    for path in [output, *([transcripts_beside(output)] if sheets else [])]:
        check_writable(path)
        if path.exists():
            raise MertoolError(f"{path} exists: give another -o, or remove it first")
    with printed_warnings():
        count = merge_stores(stores, output)
    if sheets:
        rows = {clip: row for sheet in sheets for clip, row in read_rows(sheet).items()}
        write_rows(transcripts_beside(output), rows.values())
    if as_json:
        print_json({"store": str(output), "clips": count})
    elif not quiet:
        warn(f"joined {count_of(len(stores), 'store')}")
        echo(f"store: {output} ({count_of(count, 'clip')})")


@app.command(
    cls=HelpCommand,
    name="import",
    epilog="Example: mertool store import features/chinese-hubert-large-UTT -o features/audio.h5 --modality audio",
)
def import_(
    *,
    source: Annotated[
        Path, typer.Argument(help="features/NAME-UTT or -FRA or openface_face of MERTools, or a .pkl of MMSA.")
    ],
    output: StoreOutput,
    modality: Annotated[str, typer.Option("--modality", help="audio, video, text or faces.")],
    mean: Annotated[bool, typer.Option("--mean", help="Average frames over time: one vector per clip.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store of another recipe.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a store of features that another toolkit extracted. They are kept in float32, as they are."""
    from mertool.exchange import import_store

    with printed_warnings():
        result = import_store(source, output, modality=modality, mean=mean, overwrite=overwrite)
    if as_json:
        print_json({"store": str(output), "clips": result.features, "without_features": result.failed})
    elif not quiet:
        reasons = ", ".join(f"{count} {reason}" for reason, count in result.failed.items())
        echo(
            f"{count_of(result.features, 'clip')} with {modality} features"
            + (f"; without: {reasons}" if reasons else "")
        )
        echo(f"store: {output}")


@app.command(cls=HelpCommand, name="export", epilog="Example: mertool store export features/audio.h5 -o features")
def export(
    *,
    store: Annotated[Path, typer.Argument(help="Feature store.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the feature folders.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a store as folders NAME-UTT or NAME-FRA of MERTools, one per layer, or face crops as openface_face."""
    from mertool.exchange import export_store

    folders = export_store(store, output)
    if as_json:
        print_json({"folders": {str(output / name): count for name, count in folders.items()}})
    elif not quiet:
        for name, count in folders.items():
            echo(f"{output / name}: {count_of(count, 'clip')}")

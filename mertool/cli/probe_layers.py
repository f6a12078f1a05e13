"""`mertool probe-layers`: which layers carry emotion."""

from pathlib import Path
from typing import Annotated

import typer

from mertool.cli.common import (
    MER_CLASSES,
    Classes,
    Device,
    Folds,
    Json,
    ManifestOption,
    Overwrite,
    Quiet,
    RunOutput,
    Seed,
    follow,
    print_json,
    progress,
    say,
    show_score,
    table,
)
from mertool.manifest import Manifest, parse_classes

EXAMPLE = "Example: mertool probe-layers features/audio.h5 --manifest clips.csv -o runs/probe"


def probe_layers(
    store: Annotated[Path, typer.Argument(help="Pooled feature store with several layers.")],
    manifest: ManifestOption,
    output: RunOutput,
    folds: Folds = 5,
    width: Annotated[
        int | None, typer.Option(min=1, help="Layers in the recommended window; default: a quarter of them.")
    ] = None,
    classes: Classes = MER_CLASSES,
    device: Device = "auto",
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cross-validate a linear probe on every layer and recommend a window of layers to adapt.

    Layer n is the output of transformer block n, counted from 1; layer 0 is the embedding.
    """
    labelled = Manifest.read(manifest)
    from mertool.probe_layers import ProbeOptions
    from mertool.probe_layers import probe_layers as run_stage

    options = ProbeOptions(folds, width, seed, device, parse_classes(classes), overwrite)
    with progress("probe-layers", quiet, "layers") as update:
        run, reused = run_stage(store, labelled, output, options, update)
    metrics = run.metrics
    if as_json:
        print_json({"run": str(output), "reused": reused, **metrics})
    elif not quiet:
        rows = [[layer, *map(show_score, scores.values())] for layer, scores in metrics["layers"].items()]
        rows.append(["chance (shuffled labels)", *map(show_score, metrics["chance"].values())])
        title = f"{metrics['clips']} clips, {metrics['folds']}; per cent, 95 % intervals over clips"
        table(title, ["layer", "weighted F1", "accuracy", "UAR"], rows)
        window = metrics["window"]
        say(f"recommended window: layers {window['layers']} ({window['reason']})")
        say(f"a window chosen so, on clips that did not choose it: weighted F1 {show_score(window['waf'])}")
        say(f"run: {output}{' (reused, nothing changed)' if reused else ''}")
        say(f"plot: {output / 'layers.png'}")
        follow("finetune", manifest, "--probe", output, "-o", "runs/acoustic")

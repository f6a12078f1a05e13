"""`mertool probe-layers`: which layers carry emotion."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.console import (
    MER_CLASSES,
    Classes,
    Device,
    FoldsOrFile,
    Json,
    ManifestOption,
    Overwrite,
    Quiet,
    RunOutput,
    Seed,
    check_stores,
    echo,
    format_gain,
    format_score,
    parse_folds,
    print_json,
    progress,
    suggest_next,
    table,
    warn,
)
from mertool.features import describe_layers
from mertool.manifest import Manifest, parse_classes
from mertool.options.probe_layers import ProbeLayersOptions

EXAMPLE = "Example: mertool probe-layers features/audio.h5 --manifest clips.csv -o runs/probe"


def probe_layers(
    store: Annotated[Path, typer.Argument(help="Pooled feature store with several layers.")],
    manifest: ManifestOption,
    output: RunOutput,
    folds: FoldsOrFile = "5",
    seeds: Annotated[
        int, typer.Option(min=1, help="Repetitions: other folds (unless given as a file), other starts of the MLP.")
    ] = 3,
    estimator: Annotated[str, typer.Option(help="Linear probe: logistic or ridge.")] = "logistic",
    mlp: Annotated[bool, typer.Option("--mlp/--no-mlp", help="Probe with a small multilayer perceptron, too.")] = True,
    width: Annotated[
        int | None, typer.Option(min=1, help="Layers in the recommended window; default: those as good as the best.")
    ] = None,
    injection: Annotated[
        bool, typer.Option("--injection", help="Also train a short adapter in windows of layers: where does one help?")
    ] = False,
    classes: Classes = MER_CLASSES,
    device: Device = "auto",
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cross-validate probes of emotion on every layer and recommend a window of layers to adapt.

    Layer n is the output of transformer block n, counted from 1; layer 0 is the embedding.
    """
    parts = parse_folds(folds)
    labelled = Manifest.read(manifest)
    check_stores(store)
    from mertool.probe_layers import probe_layers as run_stage

    options = ProbeLayersOptions(
        folds=parts,
        seeds=seeds,
        estimator=estimator,
        mlp=mlp,
        width=width,
        injection=injection,
        seed=seed,
        device=device,
        classes=parse_classes(classes),
        overwrite=overwrite,
    )
    run, reused = run_stage(store, labelled, output, options, lambda title, unit: progress(title, quiet, unit))
    metrics = run.metrics
    if as_json:
        print_json({"run": str(output), "reused": reused, **metrics})
    elif not quiet:
        _show(metrics, run.info["window"])
        more = ["injection"] if "injection" in metrics else []
        echo(f"run: {output}{' (reused, nothing changed)' if reused else ''}")
        echo(f"plots: {', '.join(str(output / f'{name}.png') for name in ('layers', 'recall', *more))}")
        echo(f"folds: {output / 'folds.csv'}")
        recipe = run.info["recipe"]
        if recipe["modality"] == "audio" and not recipe["adapter"]:
            suggest_next("finetune", manifest, "--probe", output, "-o", "runs/acoustic")
        else:
            suggest_next("fuse", store, "OTHER_STORES", "--manifest", manifest, "-o", "runs/fusion")


def _show(metrics: dict[str, Any], window: list[int]) -> None:
    """The table of layers, and what follows from it."""
    speakers = metrics.get("speakers")
    columns = ["layer", "weighted F1", "UAR", "accuracy", "shuffled labels"]
    rows = []
    for layer, scores in metrics["layers"].items():
        inside = window[0] <= int(layer) <= window[1]
        row = [f"{layer} *" if inside else layer, *(format_score(scores[name]) for name in ("waf", "uar", "accuracy"))]
        row.append(_per_cent(scores["control"]["waf"]))
        row += [format_score(scores["mlp"]["waf"])] if "mlp" in scores else []
        row += [_per_cent(speakers["layers"][layer])] if speakers else []
        rows.append(row)
    columns += ["MLP, weighted F1"] if "mlp" in next(iter(metrics["layers"].values())) else []
    columns += ["speaker"] if speakers else []
    times = f", mean of {metrics['shuffles']} shuffles" if metrics["shuffles"] > 1 else ""
    over = f"95 % intervals over {metrics['intervals']}"
    table(f"{metrics['clips']} clips, {metrics['folds']}{times}; per cent, {over}", columns, rows)
    echo("layer n is the output of transformer block n, layer 0 the embedding; *: in the recommended window")
    echo(f"chance (shuffled labels): weighted F1 {format_score(metrics['chance']['waf'])}, mean over layers")
    if speakers:
        chance = f"{_per_cent(speakers['chance'])} on shuffled speakers"
        echo(f"speaker: accuracy of telling {speakers['speakers']} speakers apart; {chance}")
    if metrics["unsolved"]:
        warn(f"note: {metrics['unsolved']} fits stopped before the tolerance")
    weights = metrics["layer_weights"]
    top = sorted(weights["mean"], key=weights["mean"].get, reverse=True)[:3]
    shares = ", ".join(f"{layer} ({_share(weights, layer)})" for layer in top)
    on = f"layer{'s' * (len(top) > 1)} {shares}"
    echo(f"learned layer weights: most on {on}; weighted F1 {format_score(weights['waf'])}")
    if "injection" in metrics:
        _show_injection(metrics["injection"])
    chosen = metrics["window"]
    echo(f"recommended window: {describe_layers(chosen['layers'])} ({chosen['reason']})")
    how = "on clips that did not choose it" if metrics["nested"] else f"chosen {chosen['choice']}"
    what = (
        f"{describe_layers(chosen['read_out'])}, chosen by read-out" if "read_out" in chosen else "a window chosen so"
    )
    echo(f"{what}, {how}: weighted F1 {format_score(chosen['waf'])}")


def _show_injection(ranking: list[dict[str, Any]]) -> None:
    """The table of windows, best first."""
    rows = [
        [one["layers"], format_score(one["waf"]), format_gain(one["gain"]), format_gain(one["against_best"])]
        for one in ranking
    ]
    rows[0][-1] = "best"
    size = f"{ranking[0]['trainable']:,} parameters each"
    title = f"a short adapter in each window, {size}; held-out clips, whose scores choose the best: optimistic"
    table(title, ["layers", "weighted F1", "gain over frozen", "against the best"], rows)


def _per_cent(score: dict[str, float]) -> str:
    return f"{100 * score['value']:.1f}"


def _share(weights: dict[str, Any], layer: str) -> str:
    return f"{100 * weights['mean'][layer]:.1f} % ± {100 * weights['deviation'][layer]:.1f}"

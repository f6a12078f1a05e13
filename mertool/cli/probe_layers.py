"""`mertool probe-layers`: the layers that carry emotion."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mertool.cli.arguments import Json, ManifestOption, Quiet, RunOutput
from mertool.cli.console import (
    check_stores,
    echo,
    format_gain,
    format_intervals,
    format_run,
    format_score,
    print_json,
    suggest_next,
    warn,
)
from mertool.cli.progress import progress
from mertool.cli.scores import TITLES, format_named_score, main_score, score_cells
from mertool.cli.source import read_source
from mertool.cli.tables import table
from mertool.errors import count_of
from mertool.features import describe_layers
from mertool.options.probe_layers import ProbeLayersOptions
from mertool.options.shared import EMOTION

EXAMPLE = "Example: mertool probe-layers features/audio.h5 --manifest clips.csv -o runs/probe"


def probe_layers(
    *,
    store: Annotated[Path, typer.Argument(help="Pooled feature store with several layers.")],
    manifest: ManifestOption,
    output: RunOutput,
    options: ProbeLayersOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Cross-validate probes of emotion, or of a number, on every layer and recommend a window of layers to adapt.

    Layer n is the output of transformer block n, counted from 1; layer 0 is the embedding.
    """
    labelled = read_source(manifest)
    check_stores(store)
    from mertool.probe_layers import probe_layers as run_stage

    run, reused = run_stage(
        store, labelled, output, options=options, progress=lambda title, unit: progress(title, quiet, unit)
    )
    if as_json:
        print_json({"run": str(output), "reused": reused, **run.metrics})
        return
    if quiet:
        return
    print_metrics(run.metrics, run.info["window"])
    plots = [name for name in ("layers", "recall", "injection") if (output / f"{name}.png").exists()]
    echo(format_run("run", output, reused))
    echo(f"plots: {', '.join(str(output / f'{name}.png') for name in plots)}")
    echo(f"folds: {output / 'folds.csv'}")
    if options.target != EMOTION:
        suggest_next(["fuse", store, "--target", options.target, "--manifest", manifest, "-o", "runs/fusion"])
    elif run.info["window"] and run.info["recipe"]["modality"] == "audio" and not run.info["recipe"]["adapter"]:
        suggest_next(["finetune", manifest, "--probe", output, "-o", "runs/acoustic"])
    else:
        suggest_next(["fuse", store, "OTHER_STORES", "--manifest", manifest, "-o", "runs/fusion"])


def print_metrics(metrics: dict[str, Any], window: list[int] | None) -> None:
    """Print the scores of the layers, chance, the layer weights, and the recommended window."""
    main = main_score(metrics["target"])
    print_layers(metrics, window)
    marked = "; *: in the recommended window" if window else ""
    echo(f"layer n is the output of transformer block n, layer 0 the embedding{marked}")
    echo(f"chance (shuffled labels): {_describe(main, metrics['chance'])}, mean over layers")
    if speakers := metrics.get("speakers"):
        chance = f"{_format_percent(speakers['chance'])} on shuffled speakers"
        echo(f"speaker: accuracy of telling {count_of(speakers['speakers'], 'speaker')} apart; {chance}")
    if metrics["unsolved"]:
        warn(f"note: {count_of(metrics['unsolved'], 'fit')} stopped before the tolerance")
    print_layer_weights(metrics["layer_weights"], main)
    if "injection" in metrics:
        print_injection(metrics["injection"])
    if metrics["window"]:
        print_window(metrics["window"], main, nested=metrics["nested"])
    else:
        print_no_window(metrics["best_layer"], main)


def print_layers(metrics: dict[str, Any], window: list[int] | None) -> None:
    """Print the scores of every layer; those of the recommended window are marked."""
    speakers, main = metrics.get("speakers"), main_score(metrics["target"])
    names = ["waf", "uar", "accuracy"] if main == "waf" else ["ccc", "pearson", "mae"]
    columns = ["layer", *(TITLES[name] for name in names), "shuffled labels"]
    columns += [f"MLP, {TITLES[main]}"] if "mlp" in next(iter(metrics["layers"].values())) else []
    columns += ["speaker"] if speakers else []
    rows = []
    for layer, scores in metrics["layers"].items():
        in_window = window and window[0] <= int(layer) <= window[1]
        row = [f"{layer} *" if in_window else layer]
        row += score_cells(scores, names)
        row += [format_named_score(main, {**scores["control"][main], "low": None})]
        row += score_cells(scores["mlp"], [main]) if "mlp" in scores else []
        row += [_format_percent(speakers["layers"][layer])] if speakers else []
        rows.append(row)
    shuffles = f", mean of {metrics['shuffles']} shuffles" if metrics["shuffles"] > 1 else ""
    unit = "per cent, " if main == "waf" else f"{metrics['target']}; "
    intervals = f"{unit}{format_intervals(metrics['intervals'], metrics['chance'][main])}"
    table(f"{count_of(metrics['clips'], 'clip')}, {metrics['folds']}{shuffles}; {intervals}", columns, rows)


def print_layer_weights(weights: dict[str, Any], main: str) -> None:
    """Print the three layers with the largest learned weights."""
    largest = sorted(weights["mean"], key=weights["mean"].get, reverse=True)[:3]
    shares = ", ".join(
        f"{layer} ({100 * weights['mean'][layer]:.1f} % ± {100 * weights['deviation'][layer]:.1f})" for layer in largest
    )
    score = _describe(main, weights)
    echo(f"learned layer weights: most on layer{'s' * (len(largest) > 1)} {shares}; {score}")


def print_window(window: dict[str, Any], main: str, *, nested: bool) -> None:
    """Print the recommended window, and its score on clips that did not choose it where there is one."""
    echo(f"recommended window: {describe_layers(window['layers'])} ({window['reason']})")
    chosen_on = "on clips that did not choose it" if nested else f"chosen {window['choice']}"
    scored = "a window chosen so"
    if "read_out" in window:
        scored = f"{describe_layers(window['read_out'])}, chosen by read-out"
    echo(f"{scored}, {chosen_on}: {_describe(main, window)}")


def print_no_window(best: dict[str, Any], main: str) -> None:
    """Say that no layer is above chance."""

    def shown(value: float) -> str:
        return format_named_score(main, {"value": value, "low": None, "high": None})

    lower_bound = "" if best["lower_bound"] is None else f", lower end of its interval {shown(best['lower_bound'])}"
    shuffled = f"the best layer on shuffled labels has {shown(best['best_shuffled'])}"
    warn(
        f"note: no window is recommended: the best layer, {best['layer']}, is not above chance ({TITLES[main]} "
        f"{shown(best[main]['value'])}{lower_bound}; {shuffled}). More clips, or another encoder, may help"
    )


def print_injection(ranking: list[dict[str, Any]]) -> None:
    """Print the windows with a short adapter, best first."""
    rows = [
        [
            window["layers"],
            format_score(window["waf"]),
            format_gain(window["gain"]),
            format_gain(window["against_best"]) if number else "best",
        ]
        for number, window in enumerate(ranking)
    ]
    size = f"{ranking[0]['trainable']:,} parameters each"
    title = f"a short adapter in each window, {size}; held-out clips, whose scores choose the best: optimistic"
    table(title, ["layers", "weighted F1", "gain over frozen", "against the best"], rows)


def _describe(main: str, scores: dict[str, Any]) -> str:
    """`weighted F1 73.0 [70.1, 75.8]`, or of a number `CCC 0.512 [0.430, 0.586]`."""
    return f"{TITLES[main]} {format_named_score(main, scores[main])}"


def _format_percent(score: dict[str, float]) -> str:
    return f"{100 * score['value']:.1f}"

"""`mertool finetune`: adapters on the layers that carry emotion."""

from pathlib import Path
from typing import Any

from mertool.adapters.probed_layers import read_probe
from mertool.cli.arguments import Json, Quiet, RunOutput, SourceArgument
from mertool.cli.console import (
    echo,
    format_gain,
    format_intervals,
    format_run,
    format_score,
    format_test,
    is_first_process,
    print_json,
    suggest_next,
    warn,
)
from mertool.cli.interrupts import keeping, kept_adapters
from mertool.cli.progress import progress
from mertool.cli.source import read_source
from mertool.cli.tables import table
from mertool.errors import count_of
from mertool.features import describe_layers
from mertool.options.finetune import FinetuneOptions

SYSTEMS = {
    "frozen": "frozen encoder, linear probe",
    "adapted": "adapted, with its trained head",
    "adapted_probe": "adapted, new linear probe",
    "averaged": "mean of head and frozen probe",
}
EXAMPLE = "Example: mertool finetune clips.csv --probe runs/probe -o runs/acoustic --budget 1.6M"


def finetune(
    *,
    source: SourceArgument,
    output: RunOutput,
    options: FinetuneOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train adapters in chosen layers of a speech encoder: one per fold, and one on all clips.

    Layer n is the output of transformer block n, counted from 1. A killed run keeps its finished adapters. Several
    GPUs: accelerate launch -m mertool finetune ... (or torchrun).
    """
    layers_of_probe = options.layers is None
    manifest = read_source(source)
    options = read_probe(options, manifest)
    from mertool.finetune import compare
    from mertool.finetune import finetune as run_stage

    reports = is_first_process()

    def show_progress(title: str, unit: str) -> Any:
        return progress(title, quiet or not reports, unit)

    runs = [output.with_name(f"{output.name}-{method}") for method in options.compare] or [output]
    train = compare if options.compare else run_stage
    with keeping(lambda: kept_adapters(runs)):
        run, reused = train(manifest, output, options, progress=show_progress)
    if not reports:
        return
    if as_json:
        print_json({"run": str(output), "reused": reused, **run.metrics})
    elif not quiet:
        adapter = output.with_name(f"{output.name}-{run.metrics['best']}") if options.compare else output
        plots = ["methods"] if options.compare else ["losses", "layers"]
        (print_comparison if options.compare else print_metrics)(run.metrics)
        if layers_of_probe:
            warn("note: the probe chose the layers on these same clips, so the scores lean optimistic by that choice")
        echo(format_run("run", output, reused))
        echo(f"plots: {', '.join(str(output / f'{name}.png') for name in plots)}")
        suggest_extraction(source, adapter, str(options.encoder))


def suggest_extraction(source: Path, adapter: Path, encoder: str) -> None:
    """Suggest to extract features with the adapter."""
    suggest_next(["extract", "audio", source, "--adapter", adapter, "-o", "features/acoustic.h5", "--encoder", encoder])


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print the size of the adapters, and scores of held-out clips before and after adaptation."""
    size = f" of size {metrics['size']}" if metrics["size"] else ""
    share = metrics["trainable"] / metrics["parameters"]
    trainable = f"{metrics['trainable']:,} trainable parameters ({share:.2%})"
    echo(f"{metrics['method']}{size} on {describe_layers(metrics['layers'])}: {trainable}")
    rows = [
        [
            name,
            *(format_score(metrics[key][metric]) for metric in ("waf", "uar")),
            format_gain(metrics["gains"][key]) if key in metrics["gains"] else "",
        ]
        for key, name in SYSTEMS.items()
    ]
    table(_format_protocol(metrics), ["held-out clips", "weighted F1", "UAR", "gain in weighted F1"], rows)
    print_probes(metrics["probes"])
    echo(f"gains by a {format_test(metrics['gains']['adapted'])}; the head is not kept")
    if metrics["skipped"]:
        warn(f"note: left out for lack of audio: {', '.join(sorted(metrics['skipped']))}")
    if cut := metrics.get("cut"):
        longer = f"{count_of(len(cut), 'clip')} longer than the encoder's window (first: {cut[0]})"
        warn(f"note: training used only the beginning of {longer}")


def print_probes(probes: dict[str, Any]) -> None:
    """Print the scores of a linear probe of each layer before and after adaptation."""
    rows = [
        [
            layer,
            *(format_score(probe[state]["waf"]) for state in ("frozen", "adapted")),
            format_gain(probe["gain"]),
            f"{probe['cka']:.3f}",
        ]
        for layer, probe in probes.items()
    ]
    columns = ["layer", "frozen, weighted F1", "adapted, weighted F1", "gain", "CKA"]
    table("the features only: a linear probe of each layer", columns, rows)


def print_comparison(metrics: dict[str, Any]) -> None:
    """Print the size and the scores of each method, and its test against the best one."""
    rows = [
        ["frozen, linear probe", "", "", *(format_score(metrics["frozen"][name]) for name in ("waf", "uar")), "", ""]
    ]
    for method, scores in metrics["methods"].items():
        rows.append(
            [
                method,
                f"{scores['trainable']:,}",
                f"{scores['share']:.2%}",
                *(format_score(scores["adapted"][name]) for name in ("waf", "uar")),
                format_gain(scores["gains"]["adapted"]),
                format_gain(scores["against_best"]) if "against_best" in scores else "best",
            ]
        )
    columns = ["method", "trainable", "share", "weighted F1", "UAR", "gain over frozen", "against the best"]
    table(_format_protocol(metrics), columns, rows)


def _format_protocol(metrics: dict[str, Any]) -> str:
    """The title of a table of scores."""
    clips = f"{count_of(metrics['clips'], 'clip')}, each held out once"
    intervals = format_intervals(metrics["interval"], metrics["frozen"]["waf"])
    return f"{clips}; {metrics['folds']}; per cent, {intervals}"

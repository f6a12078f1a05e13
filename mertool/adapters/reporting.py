"""Report of a run of `finetune`: metrics, predictions of held-out clips, and plots."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mertool.adapters.cross_validation import AdapterSplit
from mertool.adapters.evaluation import AdapterResult, HeldOutScorer, held_out_probabilities, score_adaptation
from mertool.adapters.setup import AdapterSetup
from mertool.features import describe_layers, format_layers
from mertool.learning.folds import speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.predictions import Predictions
from mertool.runs import RunDraft

HELD_OUT = "held_out.csv"
# The files of held-out predictions by system; that of the trained head has no ending, as in other runs.
HELD_OUT_FILES = {
    "adapted": HELD_OUT,
    "frozen": "held_out-frozen.csv",
    "adapted_probe": "held_out-probe.csv",
    "averaged": "held_out-averaged.csv",
}


def write_results(
    draft: RunDraft,
    setup: AdapterSetup,
    *,
    examples: LabelledClips,
    classes: tuple[str, ...],
    splits: Sequence[AdapterSplit],
    results: Sequence[AdapterResult],
) -> None:
    """Add metrics without and with adapters to the run, and write the predictions of held-out clips and the plots."""
    draft.metrics.update(_metrics(setup, examples, splits=splits, results=results))
    modalities = tuple(("audio",) for _ in examples.clips)
    for system, probabilities in held_out_probabilities(splits, results).items():
        predictions = Predictions(examples.clips, classes, probabilities, modalities)
        predictions.write(draft.folder / HELD_OUT_FILES[system])
    _plot(draft, setup.blocks.layers)


def _metrics(
    setup: AdapterSetup,
    examples: LabelledClips,
    *,
    splits: Sequence[AdapterSplit],
    results: Sequence[AdapterResult],
) -> dict[str, Any]:
    scorer = HeldOutScorer(examples=examples, n_classes=setup.n_classes)
    return {
        "clips": len(examples),
        "unlabelled": len(setup.unlabelled_rows),
        "interval": "speakers" if speaker_groups(examples) is not None else "clips",
        "method": setup.config.method,
        "size": setup.config.size,
        "layers": format_layers(setup.config.layers),
        "trainable": results[-1].n_trainable,
        "parameters": setup.encoder_parameters,
        **score_adaptation(scorer, splits, results, layers=setup.blocks.layers),
        "history": {split.name: asdict(result.history) for split, result in zip(splits, results, strict=True)},
    }


def _plot(draft: RunDraft, layers: tuple[int, ...]) -> None:
    # matplotlib takes a second to load.
    from mertool.plots import plot_adaptation, plot_training_losses

    metrics = draft.metrics
    title = f"{metrics['method']} on {describe_layers(metrics['layers'])}"
    losses = {name: history["label_loss"] for name, history in metrics["history"].items()}
    plot_training_losses(draft.folder / "losses", losses, title)
    plot_adaptation(draft.folder / "layers", list(layers), metrics["probes"], title=title)

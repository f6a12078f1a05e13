"""Report of a run of `finetune`: metrics, predictions of held-out clips, and plots."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from mertool.adapters.cross_validation import AdapterSplit, join_held_out
from mertool.adapters.evaluation import AdapterResult, HeldOutScorer, score_adaptation
from mertool.adapters.setup import AdapterSetup
from mertool.features import describe_layers, format_layers
from mertool.learning.folds import speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.predictions import Predictions
from mertool.runs import RunDraft

HELD_OUT = "held_out.csv"


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
    logits = torch.from_numpy(join_held_out(splits, [result.head_logits for result in results]))
    probabilities = logits.softmax(1).numpy().astype(np.float64)
    modalities = tuple(("audio",) for _ in examples.clips)
    Predictions(examples.clips, classes, probabilities, modalities).write(draft.folder / HELD_OUT)
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
    losses = {
        name: (history["label_loss"], [history["start_loss"], *history["development_loss"]], history["best_epoch"])
        for name, history in metrics["history"].items()
    }
    plot_training_losses(draft.folder / "losses", losses, title)
    plot_adaptation(draft.folder / "layers", list(layers), metrics["probes"], title=title)

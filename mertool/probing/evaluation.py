"""Scores of all probes, in the form that metrics.json holds, and the window of layers that they recommend."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mertool.features import format_layers
from mertool.learning.labelled_clips import LabelledClips
from mertool.metrics import confusion_matrix, per_class_scores
from mertool.probing.probes import ProbePlan, ProbeResults
from mertool.probing.speakers import SpeakerPredictions
from mertool.probing.window import Window, choose_nested_windows, choose_window_by_predictions, predict_by_windows
from mertool.significance import score_json
from mertool.targets import Target

Scores = dict[str, Any]
Scorer = Callable[[np.ndarray, np.ndarray], Scores]


def evaluate_probes(
    results: ProbeResults,
    plan: ProbePlan,
    examples: LabelledClips,
    *,
    layers: list[int],
    width: int | None,
) -> tuple[Scores, Window | None]:
    """Return the scores of all probes, and the recommended window of `width` layers (None: chosen by the scores).

    No window is recommended where the best layer is not above chance.
    """
    labels, groups, target = examples.labels, results.groups, plan.target

    def scored(truth: np.ndarray, predicted: np.ndarray) -> Scores:
        return target.measure.score_json(truth, predicted, groups=groups)

    nested = plan.repetitions[0].count > 2
    by_layer = {
        str(layer): _evaluate_layer(results, position, labels, target=target, scored=scored)
        for position, layer in enumerate(layers)
    }
    window = choose_window_by_predictions(
        layers,
        labels,
        target.decide(results.linear.logits),
        measure=target.measure,
        width=width,
        groups=groups,
    )
    best_layer = _compare_with_chance(by_layer, results, labels, target=target)
    chosen_by_fold, predicted = _predict_nested(results, plan, labels, layers=layers, width=width)
    penalty = "chosen for each layer and fold by inner folds without the fold's clips"
    choice = "for each fold by probes that were trained on neither its clips nor those they were scored on"
    two_fold_choice = (
        "for each fold by the other fold, whose probes were trained on its clips: two folds cannot be nested"
    )
    metrics = {
        "target": target.name,
        "clips": len(examples),
        "folds": plan.repetitions[0].description,
        "seeds": len(plan.seeds),
        "shuffles": len(plan.partitions),
        "intervals": "speakers" if groups is not None else "clips",
        "estimator": plan.estimator,
        "penalty": penalty if nested else "fixed: two folds",
        "nested": nested,
        "unsolved": results.linear.n_unconverged,
        "layers": by_layer,
        "chance": _mean_over_layers([scores["control"] for scores in by_layer.values()]),
        "best_layer": best_layer,
        "window": {
            "layers": format_layers(list(range(window.first, window.last + 1))),
            "reason": window.reason,
            "choice": choice if nested else two_fold_choice,
            "chosen_by_fold": chosen_by_fold,
            **scored(labels, predicted),
        }
        if best_layer["above_chance"]
        else None,
        "layer_weights": {
            "mean": dict(zip(map(str, layers), results.layer_weights.mean(0).tolist(), strict=True)),
            "deviation": dict(zip(map(str, layers), results.layer_weights.std(0).tolist(), strict=True)),
            **scored(labels, results.layer_weights_predicted),
        },
    }
    if results.speakers is not None:
        metrics["speakers"] = _evaluate_speakers(results.speakers, layers)
    return metrics, window if best_layer["above_chance"] else None


def _compare_with_chance(by_layer: Scores, results: ProbeResults, labels: np.ndarray, *, target: Target) -> Scores:
    """Return the best transformer layer, its main score, and whether this is above chance.

    It is if the whole interval lies above every layer of every permutation of the labels. The best of many layers is
    above the mean of chance by the choice alone, so it is compared with what was chosen in the same way. Permuting
    labels without fitting anew would not do: folds that learn from each other's clips make scores vary more than that.
    The interval is over clips where there are too few speakers for one over speakers.
    """
    measure = target.measure
    blocks = {layer: scores[measure.main] for layer, scores in by_layer.items() if int(layer) >= 1}
    best = max(blocks, key=lambda layer: blocks[layer]["value"])
    predicted = target.decide(results.linear.control_logits)
    shuffles = measure.main_score(results.control_labels[:, None], predicted)
    shuffled = float(shuffles[:, [position for position, layer in enumerate(by_layer) if layer in blocks]].max())
    lower_bound = blocks[best]["low"]
    if lower_bound is None:
        position = list(by_layer).index(best)
        lower_bound = measure.score(labels, target.decide(results.linear.logits[:, position]))[measure.main].low
    return {
        "layer": int(best),
        measure.main: blocks[best],
        "lower_bound": lower_bound,
        "best_shuffled": shuffled,
        "above_chance": lower_bound is not None and lower_bound > shuffled,
    }


def _evaluate_layer(
    results: ProbeResults, position: int, labels: np.ndarray, *, target: Target, scored: Scorer
) -> Scores:
    """Return the scores of one layer; of classes also the recall of those that have clips."""
    linear, classes = results.linear, target.classes
    predicted = target.decide(linear.logits[:, position])
    scores = {
        **scored(labels, predicted),
        "penalties": linear.penalties[:, :, position].tolist(),
        "control": scored(results.control_labels, target.decide(linear.control_logits[:, position])),
    }
    if classes:
        matrix = confusion_matrix(labels, predicted, len(classes)).sum(0)
        scores["recall"] = {row["class"]: row["recall"] for row in per_class_scores(matrix, classes) if row["clips"]}
    if results.mlp is not None:
        scores["mlp"] = scored(labels, results.mlp[:, position])
    return scores


def _predict_nested(
    results: ProbeResults, plan: ProbePlan, labels: np.ndarray, *, layers: list[int], width: int | None
) -> tuple[list[list[list[int]]], np.ndarray]:
    """Return the window [first, last] of each fold of each partition, and their predictions (S, N)."""
    chosen, predicted, linear = [], [], results.linear
    for number, folds in enumerate(plan.partitions):
        windows = choose_nested_windows(
            layers,
            labels,
            folds,
            inner=linear.inner[number],
            outer=plan.target.decide(linear.logits[number]),
            measure=plan.target.measure,
            width=width,
            groups=results.groups,
        )
        chosen.append([[window.first, window.last] for window in windows])
        logits = linear.logits[number]
        by_windows = predict_by_windows(
            layers, folds, logits, windows=windows, estimator=plan.estimator, target=plan.target
        )
        predicted.append(by_windows)
    return chosen, np.stack(predicted)


def _evaluate_speakers(speakers: SpeakerPredictions, layers: list[int]) -> Scores:
    """Return the accuracy of speaker classification by layer, and of permuted speakers; intervals over clips.

    Not over speakers: every speaker is in training and in the held-out folds, so speakers are not a sample here.
    """

    def accuracy(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float | None]:
        correct = (truth == predicted).astype(np.int64)
        return score_json(np.ones_like(correct), correct, 2)["accuracy"]

    chance = [{"accuracy": accuracy(speakers.control_speakers, row)} for row in speakers.control_predicted]
    by_layer = zip(layers, speakers.predicted, strict=True)
    return {
        "speakers": len(np.unique(speakers.speakers)),
        "clips": len(speakers.rows),
        "largest": float(np.bincount(speakers.speakers).max() / len(speakers.speakers)),
        "chance": _mean_over_layers(chance)["accuracy"],
        "layers": {str(layer): accuracy(speakers.speakers, predicted) for layer, predicted in by_layer},
    }


def _mean_over_layers(scores: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float | None]]:
    """Return the mean over layers of values and of interval bounds; bounds are None where a layer has none."""

    def mean(name: str, bound: str) -> float | None:
        values = [row[name][bound] for row in scores]
        return None if None in values else float(np.mean(values))

    return {name: {bound: mean(name, bound) for bound in ("value", "low", "high")} for name in scores[0]}

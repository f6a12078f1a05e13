"""Results of each stage in the form that the templates read, taken from metrics.json.

A run may come from anybody, so a section that does not have the form of its stage is left out and noted as missing.
"""

from collections.abc import Callable
from typing import Any

from mertool.report.chain import Chain, ReportedRun

SCORES = ("waf", "accuracy", "uar", "macro_f1")
SYSTEM_NAMES = {
    "frozen": "frozen features, linear probe",
    "adapted": "adapter and head",
    "adapted_probe": "adapted features, new probe",
    "averaged": "mean of head and frozen probe",
}
Section = dict[str, Any]


def sections_of(chain: Chain) -> dict[str, list[Section]]:
    """Return the sections of all runs by kind: layers, adaptation, methods, alignment, fusion."""
    makers: dict[str, tuple[str, Callable[[ReportedRun], Section]]] = {
        "probe-layers": ("layers", _layers),
        "finetune": ("adaptation", _adaptation),
        "compare": ("methods", _methods),
        "align": ("alignment", _alignment),
        "fuse": ("fusion", _fusion),
    }
    sections: dict[str, list[Section]] = {kind: [] for kind, _ in makers.values()}
    for reported in chain.runs.values():
        kind, make = makers[reported.stage]
        if not reported.metrics:
            continue
        try:
            sections[kind].append({"run": reported.name, **make(reported)})
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            reason = f"it is not as `mertool {reported.stage}` writes it ({type(error).__name__}: {error})"
            chain.miss(reported.name, "metrics", reported.run.folder / "metrics.json", reason)
    return sections


def score(value: Any) -> dict[str, float | None]:
    """Return a score with its bounds as numbers; raises TypeError or KeyError for anything else."""
    return {name: None if value[name] is None else float(value[name]) for name in ("value", "low", "high")}


def gain(value: Any) -> dict[str, Any]:
    """Return the result of a paired test."""
    bounds = {name: None if value[name] is None else float(value[name]) for name in ("low", "high")}
    holm = {"p_holm": float(value["p_holm"])} if "p_holm" in value else {}
    numbers = {"difference": float(value["difference"]), "p": float(value["p"]), "units": int(value["units"])}
    return {**numbers, **bounds, **holm, "unit": str(value["unit"])}


def scores(value: Any) -> dict[str, Any]:
    """Return the four scores of a system."""
    return {name: score(value[name]) for name in SCORES}


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values if value is not None]


def _layers(reported: ReportedRun) -> Section:
    metrics, window = reported.metrics, reported.run.info.get("window")
    layers = sorted(metrics["layers"].items(), key=lambda item: int(item[0]))
    nested = metrics.get("window") or {}
    return {
        "clips": int(metrics["clips"]),
        "folds": str(metrics["folds"]),
        "seeds": int(metrics["seeds"]),
        "intervals": str(metrics["intervals"]),
        "estimator": str(metrics["estimator"]),
        "layers": [
            {
                "layer": int(layer),
                **scores(row),
                "chance": score(row["control"]["waf"]) if "control" in row else None,
                "mlp": score(row["mlp"]["waf"]) if "mlp" in row else None,
            }
            for layer, row in layers
        ],
        "window": [int(layer) for layer in window] if isinstance(window, list) else None,
        "window_layers": str(nested.get("layers", "")),
        "reason": str(nested.get("reason", "")),
        "choice": str(nested.get("choice", "")),
        "nested": scores(nested) if "waf" in nested else None,
        "injection": [
            {"layers": str(row["layers"]), "waf": score(row["waf"])} for row in metrics.get("injection") or []
        ],
    }


def _adaptation(reported: ReportedRun) -> Section:
    metrics = reported.metrics
    return {
        "clips": int(metrics["clips"]),
        "folds": str(metrics["folds"]),
        "intervals": str(metrics["interval"]),
        "method": str(metrics["method"]),
        "size": metrics["size"],
        "layers": str(metrics["layers"]),
        "trainable": int(metrics["trainable"]),
        "parameters": int(metrics["parameters"]),
        "systems": [{"name": SYSTEM_NAMES[name], **scores(metrics[name])} for name in SYSTEM_NAMES],
        "gains": [
            {"name": SYSTEM_NAMES[name], **gain(metrics["gains"][name])} for name in SYSTEM_NAMES if name != "frozen"
        ],
        "probes": [
            {
                "layer": int(layer),
                "frozen": score(row["frozen"]["waf"]),
                "adapted": score(row["adapted"]["waf"]),
                "gain": gain(row["gain"]),
                "cka": None if row["cka"] is None else float(row["cka"]),
            }
            for layer, row in sorted(metrics["probes"].items(), key=lambda item: int(item[0]))
        ],
        "losses": {str(name): _numbers(history["label_loss"]) for name, history in metrics["history"].items()},
        "skipped": {str(clip): str(reason) for clip, reason in metrics["skipped"].items()},
    }


def _methods(reported: ReportedRun) -> Section:
    rows = reported.metrics["methods"]
    return {
        "rows": [
            {"method": str(name), "trainable": int(row["trainable"]), "waf": score(row["adapted"]["waf"])}
            for name, row in rows.items()
        ]
    }


def _alignment(reported: ReportedRun) -> Section:
    metrics, held_out = reported.metrics, reported.metrics["held_out"]
    ranks = [name for name in held_out["video_to_audio"] if name.startswith("recall@")]
    directions = {"video_to_audio": "video to audio", "audio_to_video": "audio to video"}
    probe = metrics.get("probe")
    return {
        "clips": int(held_out["clips"]),
        "train_clips": int(metrics["train_clips"]),
        "development_clips": int(metrics["development_clips"]),
        "intervals": str(held_out["interval"]),
        "recall": [
            {
                "name": f"{words}, {rank}",
                "score": score(held_out[direction][rank]),
                "chance": float(held_out["chance"][rank]),
            }
            for direction, words in directions.items()
            for rank in ranks
        ],
        "cka": float(held_out["cka"]["value"]),
        "cka_shuffled": float(held_out["cka"]["shuffled"]),
        "losses": {"training": _numbers(metrics["loss"]), "development": _numbers(metrics["development_loss"])},
        "best_epoch": int(metrics["best_epoch"]),
        "probe": probe
        and {
            "clips": int(probe["clips"]),
            "unaligned": scores(probe["unaligned"]),
            "aligned": scores(probe["aligned"]),
            "gain": gain(probe["gain"]),
        },
    }


def _fusion(reported: ReportedRun) -> Section:
    metrics = reported.metrics
    ensembles = metrics.get("cross_validation") or metrics["ensembles"]
    best, single = metrics.get("against_best_part"), metrics.get("single_models")
    temperature = (metrics.get("correction") or {}).get("temperature")
    rounds = (metrics.get("self_training") or {}).get("rounds") or []
    return {
        "clips": int(metrics["clips"]),
        "folds": str(metrics["folds"]),
        "members": int(metrics["members"]),
        "selection": str(metrics["selection"]),
        "intervals": str(metrics["intervals"]),
        "chance": float(metrics["always_largest_class"]),
        "systems": [{"name": str(name), "clips": int(row["clips"]), **scores(row)} for name, row in ensembles.items()],
        "optimistic": "single_models" in metrics,
        "single_models": [
            {
                "name": str(name),
                "mean": float(row["waf"]["mean"]),
                "std": None if row["waf"]["std"] is None else float(row["waf"]["std"]),
            }
            for name, row in (single["scores"] if single else {}).items()
        ],
        "against_best_part": best and {"part": str(best["part"]), "note": str(best["note"]), **gain(best)},
        "temperature": temperature
        and {
            "temperature": float(temperature["temperature"]),
            "ece_before": float(temperature["before"]["ece"]),
            "ece_after": float(temperature["after"]["ece"]),
        },
        "self_training": gain(rounds[-1]["gain"]) if rounds else None,
    }

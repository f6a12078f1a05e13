"""The ledger: of each score, the clips that it was computed on, and everything that was chosen by labels of them."""

from typing import Any

from mertool.report.chain import Chain, ReportedRun
from mertool.report.systems import System

Entry = dict[str, Any]


def make_ledger(chain: Chain, sections: dict[str, list[dict[str, Any]]], systems: list[System]) -> list[Entry]:
    """Return an entry for the scores of each run and each evaluation."""
    entries = []
    for section in sections["layers"]:
        entries += _of_layers(section)
    for section in sections["adaptation"]:
        entries.append(_of_adaptation(chain.runs[section["run"]], section))
    for section in sections["alignment"]:
        entries += _of_alignment(section)
    for section in sections["fusion"]:
        entries.append(_of_fusion(chain, chain.runs[section["run"]], section))
    trained = {clip for reported in chain.runs.values() for clip in _folds(reported)}
    entries += [_of_evaluation(system, trained) for system in systems if system.on == "evaluation"]
    return entries


def _entry(name: str, on: str, *chosen: str, optimistic: str = "", score: Any = None) -> Entry:
    """optimistic: why the score is too high; empty where nothing makes it so."""
    return {
        "score": name,
        "on": on,
        "chosen": [text for text in chosen if text],
        "optimistic": optimistic,
        "waf": score,
    }


def _folds(reported: ReportedRun) -> dict[str, Any]:
    folds = reported.run.info.get("folds")
    return folds if isinstance(folds, dict) else {}


def _of_layers(section: dict[str, Any]) -> list[Entry]:
    run, on = section["run"], f"{section['clips']} clips held out in turn; {section['folds']}"
    best = max(section["layers"], key=lambda row: row["waf"]["value"])
    entries = [
        _entry(
            f"{run}: best single layer ({best['layer']})",
            on,
            "penalty: inner folds of the training clips",
            f"layer: the best of {len(section['layers'])} on the clips that are scored",
            optimistic="the layer was chosen by these scores",
            score=best["waf"],
        )
    ]
    if section["nested"]:
        name = f"{run}: window of layers, nested"
        entries.append(_entry(name, on, f"window: {section['choice']}", score=section["nested"]["waf"]))
    return entries


def _of_adaptation(reported: ReportedRun, section: dict[str, Any]) -> Entry:
    probes = reported.used.get("probe", [])
    layers = f"layers: given ({section['layers']})"
    if probes:
        layers = f"layers: {section['layers']}, by the run {probes[0]}, which probed clips of all folds"
    return _entry(
        f"{section['run']}: adapter and head",
        f"{section['clips']} clips held out in turn; {section['folds']}",
        layers,
        "epochs, rate and size: given before training; no early stopping",
        "probes that it is compared with: penalty by inner folds of the training clips",
        optimistic="the layers were chosen with the labels of the scored clips among others" if probes else "",
        score=section["systems"][1]["waf"],
    )


def _of_alignment(section: dict[str, Any]) -> list[Entry]:
    entries = [
        _entry(
            f"{section['run']}: retrieval",
            f"{section['clips']} held-out clips, without labels",
            f"epoch: {section['best_epoch']}, by {section['development_clips']} development clips that are not scored",
        )
    ]
    if section["probe"]:
        on = f"{section['probe']['clips']} labelled clips held out in turn, each encoded by an aligner that left it out"
        waf = section["probe"]["aligned"]["waf"]
        entries.append(_entry(f"{section['run']}: probe of aligned features", on, "penalty: inner folds", score=waf))
    return entries


def _of_fusion(chain: Chain, reported: ReportedRun, section: dict[str, Any]) -> Entry:
    adapters = [name for name in reported.used.get("adapter", []) if name in chain.runs]
    by_probe = [name for name in adapters if chain.runs[name].used.get("probe")]
    reasons = []
    if section["optimistic"]:
        reasons.append("MERTools' protocol chooses epochs by the scored clips")
    if by_probe:
        reasons.append(
            f"the layers of {', '.join(by_probe)} were chosen with the labels of the scored clips among others"
        )
    if section["self_training"] and adapters:
        reasons.append("unlabelled clips have features of an adapter that learned all labels")
    return _entry(
        f"{section['run']}: {section['systems'][-1]['name']}",
        f"{section['systems'][-1]['clips']} clips held out in turn; {section['folds']}",
        f"selection: {section['selection']}",
        f"features of {', '.join(adapters)}: by adapters that left the clip's fold out" if adapters else "",
        "temperature: on the held-out predictions; it changes no label" if section["temperature"] else "",
        optimistic="; ".join(reasons),
        score=section["systems"][-1]["waf"],
    )


def _of_evaluation(system: System, trained: set[str]) -> Entry:
    shared = len(trained.intersection(system.clips))
    known = "none of them is a training clip of these runs" if not shared else f"{shared} of them are training clips"
    if not trained:
        known = "the training clips are not known"
    return _entry(
        f"{system.name}: predictions",
        f"{len(system.clips)} labelled clips; {known}",
        "nothing by these clips that mertool knows of",
        optimistic=f"{shared} scored clips have the id of a training clip" if shared else "",
        score=system.to_json()["scores"]["waf"],
    )

"""Facts of the runs beside their scores: settings, files, encoders, failed clips, and time."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mertool.encoders.training_data import training_data_of
from mertool.errors import REASONS
from mertool.report.chain import Chain, ReportedRun, StoreFacts
from mertool.tables import MAX_TABLE_BYTES

MAX_LISTED = 5  # clips that are named per reason


def describe_run(reported: ReportedRun) -> dict[str, Any]:
    """Return what a run is: stage, settings, seed, versions, machine, fingerprints, and what it was made from."""
    info = reported.run.info
    return {
        "name": reported.name,
        "stage": reported.stage,
        "given": reported.given,
        "folder": str(reported.run.folder.absolute()),
        "used": reported.used,
        "key": info["key"],
        "seed": info.get("seed"),
        "mertool": info.get("mertool"),
        "versions": _texts(info.get("versions")),
        "machine": _texts(info.get("machine")),
        "finished": info.get("finished"),
        "seconds": info["seconds"] if isinstance(info.get("seconds"), int | float) else None,
        "classes": [str(name) for name in info.get("classes") or []],
        "options": _texts(info.get("options")),
        "manifest": reported.manifest and str(reported.manifest),
        "stores": [
            {
                "path": str(store.path),
                "modality": store.recipe.modality,
                "encoder": store.recipe.encoder,
                "fingerprint": store.recipe.fingerprint,
                "clips": store.n_clips,
            }
            for store in reported.stores
        ],
    }


def _texts(value: Any) -> dict[str, str]:
    """Return the entries of an object as text, lists with commas; none for anything that is no object."""
    if not isinstance(value, dict):
        return {}
    return {str(name): _text(item) for name, item in value.items()}


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def list_encoders(chain: Chain) -> list[dict[str, Any]]:
    """Return the encoders of all stores, with the data that they are known to have been trained on."""
    rows: dict[str, dict[str, Any]] = {}
    for reported in chain.runs.values():
        for store in reported.stores:
            origin = store.provenance.get("encoder")
            checkpoint = str(origin.get("checkpoint")) if isinstance(origin, dict) else ""
            known, by_name = training_data_of(store.recipe.encoder, checkpoint)
            row = rows.setdefault(
                store.recipe.weights,
                {
                    "name": store.recipe.encoder,
                    "modality": store.recipe.modality,
                    "checkpoint": checkpoint,
                    "revision": origin.get("revision") if isinstance(origin, dict) else None,
                    "weights": store.recipe.weights,
                    "data": known.data if known else "not known",
                    "shared_sources": known.shared_sources if known else "not known",
                    "by_name": bool(known and by_name),
                    "runs": [],
                },
            )
            if reported.name not in row["runs"]:
                row["runs"].append(reported.name)
    return list(rows.values())


def list_failures(chain: Chain, predictions: Iterable[Path]) -> list[dict[str, Any]]:
    """Return, for each store and each file of predictions, the clips without features by reason."""
    stores: dict[Path, StoreFacts] = {
        store.path: store for reported in chain.runs.values() for store in reported.stores
    }
    rows = [
        _failure_row(str(path), store.recipe.modality, store.failures, store.n_clips) for path, store in stores.items()
    ]
    for path in predictions:
        by_modality: dict[str, dict[str, list[str]]] = {}
        for modality, reason, clip in _failed_predictions(path.with_name(f"{path.stem}.failures.csv")):
            by_modality.setdefault(modality, {}).setdefault(reason, []).append(clip)
        rows += [_failure_row(str(path), modality, reasons, None) for modality, reasons in by_modality.items()]
    return rows


def _failure_row(path: str, modality: str, reasons: dict[str, list[str]], n_clips: int | None) -> dict[str, Any]:
    return {
        "path": path,
        "modality": modality,
        "clips": n_clips,
        "reasons": [
            {
                "reason": reason,
                "message": REASONS[reason].message if reason in REASONS else "",
                "missing_modality": reason in REASONS and REASONS[reason].missing_modality,
                "count": len(clips),
                "clips": clips[:MAX_LISTED],
            }
            for reason, clips in sorted(reasons.items())
        ],
    }


def _failed_predictions(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield modality, reason and clip of the failures of `mertool predict`; none if there is no such file."""
    if not path.is_file() or path.stat().st_size > MAX_TABLE_BYTES:
        return
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            yield row.get("modality") or "", row.get("reason") or "", row.get("clip") or ""

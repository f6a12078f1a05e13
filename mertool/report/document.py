"""The document of a report: one JSON object that the page, the tables, the model card and the checklist are made of."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mertool import __version__
from mertool.errors import MertoolError
from mertool.report.chain import Chain
from mertool.report.comparison import compare_systems
from mertool.report.facts import describe_run, list_encoders, list_failures
from mertool.report.ledger import make_ledger
from mertool.report.media import describe_clips, face_stores, list_cells, thumbnails
from mertool.report.sections import gain, scores, sections_of
from mertool.report.shorten import without_shared_folder
from mertool.report.systems import systems_of_evaluation, systems_of_run
from mertool.untrusted import read_json_object

VERSION = 1
REMEDY = "give the -o folder of a run, or the JSON file that `mertool evaluate -o` wrote"


def gather(paths: Sequence[Path], *, title: str | None, media: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the document of runs and evaluation files, and a picture of each listed clip as a data URL.

    Without `media` the document has no transcripts and speakers, and there are no pictures. Raises MertoolError for a
    path that is neither a run nor an evaluation; parts of a run that are gone are listed in the document.
    """
    evaluations = {path: _read_evaluation(path) for path in paths if path.is_file()}
    chain = Chain([path for path in paths if path not in evaluations])
    systems = [system for reported in chain.runs.values() for system in systems_of_run(chain, reported)]
    for path, evaluation in evaluations.items():
        systems += systems_of_evaluation(chain, path, evaluation)
    sections = sections_of(chain)
    predictions = _predictions_of(evaluations)
    cells = {system.name: list_cells(system) for system in systems}
    listed = sorted({row[0] for rows in cells.values() for row in rows})
    document = {
        "report": VERSION,
        "mertool": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": title or ", ".join(path.name for path in paths),
        "media": media,
        "runs": [describe_run(reported) for reported in chain.runs.values()],
        "systems": [{**system.to_json(), "cells": cells[system.name]} for system in systems],
        "tests": compare_systems(systems),
        **sections,
        "robustness": _robustness(chain, evaluations),
        "failures": list_failures(chain, predictions),
        "encoders": list_encoders(chain),
        "ledger": make_ledger(chain, sections, systems),
        "clips": describe_clips(systems, listed) if media else {},
        "missing": [vars(part) for part in chain.missing],
    }
    pictures = thumbnails(face_stores(chain.runs.values(), predictions), listed) if media else {}
    files = [*(reported.run.folder for reported in chain.runs.values()), *evaluations]
    return without_shared_folder(document, files), pictures


def _read_evaluation(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of `mertool evaluate`."""
    if path.suffix != ".json":
        raise MertoolError(f"{path} is not a run: {REMEDY}")
    evaluation = read_json_object(path, REMEDY)
    if not isinstance(evaluation.get("systems"), list):
        raise MertoolError(f"{path} is no result of `mertool evaluate` (it lists no systems): {REMEDY}")
    return evaluation


def _predictions_of(evaluations: dict[Path, dict[str, Any]]) -> list[Path]:
    """Return the predictions files of evaluations that are not held-out predictions of a run."""
    texts = [
        str(entry["predictions"])
        for evaluation in evaluations.values()
        for entry in evaluation["systems"]
        if isinstance(entry, dict) and "predictions" in entry
    ]
    paths = [Path(text) for text in dict.fromkeys(texts)]
    return [path for path in paths if not (path.parent / "run.json").exists()]


def _robustness(chain: Chain, evaluations: dict[Path, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the scores of each evaluation under harder conditions."""
    sections = []
    for path, evaluation in evaluations.items():
        if "robustness" not in evaluation:
            continue
        try:
            rows = [
                {
                    "condition": str(row["condition"]),
                    "clips": int(row["clips"]),
                    **scores(row),
                    "gain": gain(row["difference"]) if number else None,
                }
                for number, row in enumerate(evaluation["robustness"])
            ]
            sections.append({"name": path.name, "intervals": str(evaluation["intervals"]), "rows": rows})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            chain.miss(path.name, "robustness", path, f"it is not as `mertool evaluate` writes it ({error})")
    return sections

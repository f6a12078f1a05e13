"""Clips that a cell of a confusion matrix lists: probabilities, and, unless people are left out, words and a face."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import MertoolError
from mertool.report.chain import ReportedRun
from mertool.report.systems import System
from mertool.store import FeatureStore

MAX_CLIPS_PER_CELL = 24
MAX_TEXT = 300  # characters of a transcript
THUMBNAIL = 72  # pixels


def list_cells(system: System) -> list[list[Any]]:
    """Return [clip, truth, prediction, probabilities] of the most confident clips of each cell, best first."""
    confidence, predicted = system.probabilities.max(1), system.predicted
    order = np.argsort(-confidence, kind="stable")
    taken: dict[tuple[int, int], int] = {}
    rows: list[list[Any]] = []
    for row in order.tolist():
        cell = int(system.truth[row]), int(predicted[row])
        taken[cell] = taken.get(cell, 0) + 1
        if taken[cell] <= MAX_CLIPS_PER_CELL:
            rows.append([system.clips[row], *cell, [round(p, 3) for p in system.probabilities[row].tolist()]])
    return rows


def describe_clips(systems: Sequence[System], listed: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the transcript and the speaker of each listed clip."""
    details = {name: clip for system in systems for name, clip in system.details.items()}
    described = {}
    for name in sorted(set(listed)):
        text, speaker = details[name].text or "", details[name].speaker or ""
        described[name] = {"text": text[:MAX_TEXT] + ("..." if len(text) > MAX_TEXT else ""), "speaker": speaker}
    return described


def face_stores(runs: Iterable[ReportedRun], predictions: Iterable[Path]) -> list[Path]:
    """Return the stores of face crops beside the video features of runs, and beside features of predictions."""
    folders = [store.path.parent for run in runs for store in run.stores if store.recipe.modality == "video"]
    folders += [path.with_name(path.name + ".features") for path in predictions]
    return [path for folder in dict.fromkeys(folders) for path in sorted(folder.glob("faces*.h5"))]


def thumbnails(stores: Iterable[Path], clips: Iterable[str]) -> dict[str, str]:
    """Return a picture of the face in each clip that a store has crops of, as a data URL of a small JPEG."""
    wanted, pictures = set(clips), dict[str, str]()
    for path in stores:
        try:
            with FeatureStore(path) as store:
                if store.recipe.modality != "faces":
                    continue
                for clip in sorted(wanted.intersection(store.ids) - pictures.keys()):
                    frames = store.frames(clip)
                    pictures[clip] = _data_url(frames[len(frames) // 2])
        except (MertoolError, ValueError, TypeError, IndexError):
            continue  # faces only illustrate: a store that cannot be read leaves them out
    return pictures


def _data_url(crop: np.ndarray) -> str:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(crop, np.uint8)).convert("RGB").resize((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

"""`Predictions`: label, confidence, probabilities and present modalities per clip, as CSV or JSON Lines."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import MertoolError
from mertool.files import atomic_open, explain_write_errors
from mertool.tables import MAX_TABLE_BYTES, normalize
from mertool.untrusted import parse_json

PREFIX = "p_"
MAX_CLASSES = 1000


def feature_cache_folder(predictions: Path) -> Path:
    """The folder of the features that predictions were made from."""
    return predictions.with_name(predictions.name + ".features")


@dataclass(frozen=True)
class Predictions:
    """Class probabilities (N, C) of clips; `modalities[i]` are those of clip i that were present."""

    clips: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: np.ndarray
    modalities: tuple[tuple[str, ...], ...]

    @property
    def labels(self) -> list[str]:
        """The most probable class of each clip."""
        return [self.classes[index] for index in self.probabilities.argmax(axis=1)]

    def write(self, path: Path) -> None:
        """Write CSV, or JSON Lines for a path that ends in .jsonl: atomically, one row per clip."""
        with PredictionsWriter(path, self.classes) as writer:
            writer.add(self.clips, self.probabilities, self.modalities)

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read what `write` wrote."""
        if not path.is_file():
            raise MertoolError(f"{path} does not exist: give the predictions file of `mertool predict`")
        if (size := path.stat().st_size) > MAX_TABLE_BYTES:
            raise MertoolError(f"{path} has {size:,} bytes, at most {MAX_TABLE_BYTES:,} are read")
        try:
            records = _read_jsonl(path) if path.suffix == ".jsonl" else _read_csv(path)
            clips, rows, modalities, classes = records
            clips, classes = [*map(normalize, clips)], [*map(normalize, classes)]
            probabilities = np.array(rows, np.float64).reshape(len(clips), len(classes))
        except (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError, csv.Error) as error:
            raise MertoolError(
                f"{path} is not a predictions file (columns clip,label,{PREFIX}<class>...,modalities): {error}"
            ) from error
        if not clips:
            raise MertoolError(f"{path} holds no prediction")
        if len(classes) > MAX_CLASSES:
            raise MertoolError(f"{path} has {len(classes):,} classes, at most {MAX_CLASSES:,} are read")
        valid = np.isfinite(probabilities).all(1) & (probabilities >= 0).all(1) & (probabilities <= 1).all(1)
        if not valid.all():
            first = clips[int(np.flatnonzero(~valid)[0])]
            raise MertoolError(f"{path}: the probabilities of clip '{first}' are not all between 0 and 1")
        if repeated := [clip for clip, count in Counter(clips).items() if count > 1]:
            raise MertoolError(f"{path}: clip '{min(repeated)}' stands twice")
        return cls(tuple(clips), tuple(classes), probabilities, tuple(modalities))


class PredictionsWriter:
    """Writes rows as they come, to a temporary file that takes the place of `path` at the end. A context manager.

    `confidence` is the probability of the label.
    """

    def __init__(self, path: Path, classes: tuple[str, ...]):
        self.path, self.classes = path, classes
        self._lines = path.suffix == ".jsonl"

    def __enter__(self) -> "PredictionsWriter":
        self._stack = ExitStack()
        self._file = self._stack.enter_context(atomic_open(self.path))
        if not self._lines:
            self._row(["clip", "label", "confidence", *(PREFIX + name for name in self.classes), "modalities"])
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, clips: Sequence[str], probabilities: np.ndarray, modalities: Sequence[tuple[str, ...]]) -> None:
        """Rows of some clips: ids, probabilities (n, C), and the modalities that were there."""
        best = probabilities.argmax(axis=1)
        for clip, label, row, present in zip(clips, best, probabilities.tolist(), modalities, strict=True):
            name, digits = self.classes[label], [*map(_digits, row)]
            if self._lines:
                scores = dict(zip(self.classes, map(float, digits), strict=True))
                record = {"clip": clip, "label": name, "confidence": float(digits[label]), "probabilities": scores}
                self._write(json.dumps({**record, "modalities": list(present)}, ensure_ascii=False))
            else:
                self._row([clip, name, digits[label], *digits, "+".join(present)])

    def _row(self, cells: list[str]) -> None:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="").writerow(cells)
        self._write(buffer.getvalue())

    def _write(self, line: str) -> None:
        with explain_write_errors(self.path):
            self._file.write(f"{line}\n".encode())


def _digits(probability: float) -> str:
    """All that single precision holds, so that a near tie is read as it was written."""
    return f"{probability:.9g}"


Records = tuple[list[str], list[list[float]], list[tuple[str, ...]], list[str]]


def _read_csv(path: Path) -> Records:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        classes = [name.removeprefix(PREFIX) for name in reader.fieldnames or [] if name.startswith(PREFIX)]
        if not classes:
            raise ValueError(f"no column begins with {PREFIX}")
        rows = list(reader)
    return (
        [row["clip"] for row in rows],
        [[float(row[PREFIX + name]) for name in classes] for row in rows],
        [tuple(filter(None, row["modalities"].split("+"))) for row in rows],
        classes,
    )


def _read_jsonl(path: Path) -> Records:
    rows = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    classes = list(rows[0]["probabilities"]) if rows else []
    return (
        [row["clip"] for row in rows],
        [[float(row["probabilities"][name]) for name in classes] for row in rows],
        [tuple(row["modalities"]) for row in rows],
        classes,
    )

"""`Predictions`: label, confidence, probabilities, and modalities present and missing, per clip; CSV or JSON Lines."""

import csv
import io
import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import MertoolError
from mertool.files import atomic_open, explain_write_errors
from mertool.tables import MAX_TABLE_BYTES, normalize
from mertool.untrusted import parse_json

PREFIX = "p_"
MAX_CLASSES = 1000
SUFFIXES = (".csv", ".jsonl")


def check_suffix(output: Path) -> None:
    """Raise MertoolError if predictions cannot be written to a file of this name."""
    if output.suffix not in SUFFIXES:
        raise MertoolError(f"-o {output}: give a name that ends in {' or '.join(SUFFIXES)}")


def feature_cache_folder(predictions: Path) -> Path:
    """The folder of the features that predictions were made from."""
    return predictions.with_name(predictions.name + ".features")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction of one clip.

    clip: its id. path: of its media file; empty where it is not known.
    probabilities: (C,) of the classes.
    modalities: those that were present.
    missing: the reason (see errors.REASONS) of each modality that the bundle uses and the clip lacks.
    """

    clip: str
    path: str = ""
    probabilities: np.ndarray
    modalities: tuple[str, ...]
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """Class probabilities (N, C) of clips; `modalities[i]` are those of clip i that were present.

    `paths[i]` and `missing[i]` are as in `Prediction`; both are empty where a file has no such columns.
    """

    clips: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: np.ndarray
    modalities: tuple[tuple[str, ...], ...]
    paths: tuple[str, ...] = ()
    missing: tuple[dict[str, str], ...] = ()

    @property
    def labels(self) -> list[str]:
        """The most probable class of each clip."""
        return [self.classes[index] for index in self.probabilities.argmax(axis=1)]

    def write(self, path: Path) -> None:
        """Write CSV, or JSON Lines for a path that ends in .jsonl: atomically, one row per clip."""
        with PredictionsWriter(path, self.classes) as writer:
            for row, clip in enumerate(self.clips):
                prediction = Prediction(
                    clip=clip,
                    path=self.paths[row] if self.paths else "",
                    probabilities=self.probabilities[row],
                    modalities=self.modalities[row],
                    missing=self.missing[row] if self.missing else {},
                )
                writer.add(prediction)

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read what `write` wrote."""
        if not path.is_file():
            raise MertoolError(f"{path} does not exist: give the predictions file of `mertool predict`")
        if (size := path.stat().st_size) > MAX_TABLE_BYTES:
            raise MertoolError(f"{path} has {size:,} bytes, at most {MAX_TABLE_BYTES:,} are read")
        try:
            rows, classes = _read_jsonl(path) if path.suffix == ".jsonl" else _read_csv(path)
            clips, classes = tuple(normalize(row.clip) for row in rows), [*map(normalize, classes)]
            probabilities = np.array([row.probabilities for row in rows], np.float64).reshape(len(clips), len(classes))
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
        return cls(
            clips,
            tuple(classes),
            probabilities,
            modalities=tuple(row.modalities for row in rows),
            paths=tuple(row.path for row in rows),
            missing=tuple(row.missing for row in rows),
        )


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
            scores = [PREFIX + name for name in self.classes]
            self._row(["clip", "path", "label", "confidence", *scores, "modalities", "missing"])
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, prediction: Prediction) -> None:
        """Write one row."""
        best = int(prediction.probabilities.argmax())
        label, digits = self.classes[best], [*map(_digits, prediction.probabilities.tolist())]
        if not self._lines:
            present = "+".join(prediction.modalities)
            missing = "; ".join(f"{modality}: {reason}" for modality, reason in prediction.missing.items())
            self._row([prediction.clip, prediction.path, label, digits[best], *digits, present, missing])
            return
        record = {
            "clip": prediction.clip,
            "path": prediction.path,
            "label": label,
            "confidence": float(digits[best]),
            "probabilities": dict(zip(self.classes, map(float, digits), strict=True)),
            "modalities": list(prediction.modalities),
            "missing": prediction.missing,
        }
        self._write(json.dumps(record, ensure_ascii=False))

    def _row(self, cells: list[str]) -> None:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="").writerow(cells)
        self._write(buffer.getvalue())

    def _write(self, line: str) -> None:
        with explain_write_errors(self.path):
            # A file name need not be UTF-8; such bytes are written as \\xNN.
            self._file.write(f"{line}\n".encode(errors="backslashreplace"))


def _digits(probability: float) -> str:
    """All that single precision holds, so that a near tie is read as it was written."""
    return f"{probability:.9g}"


def _read_csv(path: Path) -> tuple[list[Prediction], list[str]]:
    """Return the rows and the names of the classes."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        classes = [name.removeprefix(PREFIX) for name in reader.fieldnames or [] if name.startswith(PREFIX)]
        if not classes:
            raise ValueError(f"no column begins with {PREFIX}")
        predictions = [
            Prediction(
                clip=row["clip"],
                path=row.get("path") or "",
                probabilities=np.array([float(row[PREFIX + name]) for name in classes]),
                modalities=tuple(filter(None, row["modalities"].split("+"))),
                missing=_parse_missing(row.get("missing") or ""),
            )
            for row in reader
        ]
    return predictions, classes


def _parse_missing(cell: str) -> dict[str, str]:
    """Return the reasons by modality, from `video: no_face; text: no_text`."""
    pairs = (entry.partition(":") for entry in cell.split(";") if entry.strip())
    return {modality.strip(): reason.strip() for modality, _, reason in pairs}


def _read_jsonl(path: Path) -> tuple[list[Prediction], list[str]]:
    """Return the rows and the names of the classes."""
    rows = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    classes = list(rows[0]["probabilities"]) if rows else []
    predictions = [
        Prediction(
            clip=row["clip"],
            path=str(row.get("path") or ""),
            probabilities=np.array([float(row["probabilities"][name]) for name in classes]),
            modalities=tuple(row["modalities"]),
            missing={str(name): str(reason) for name, reason in (row.get("missing") or {}).items()},
        )
        for row in rows
    ]
    return predictions, classes

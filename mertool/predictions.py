"""Predictions of classes or of a number, with the modalities that each clip has and lacks; CSV or JSON Lines."""

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
from mertool.manifest import NUMBERS
from mertool.tables import MAX_TABLE_BYTES, normalize
from mertool.targets import EMOTION, PREFIX, Classes, Number, Target
from mertool.untrusted import parse_json

MAX_CLASSES = 1000
MANIFEST_COLUMNS = {"speaker", "split", "start", "end"}  # a manifest may hold the true numbers
MAX_NUMBER = 1e6  # larger ones would lose digits in sums of squares
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
    outputs: probabilities (C,) of the classes, or a number (1,).
    modalities: those that were present.
    missing: the reason (see errors.REASONS) of each modality that the bundle uses and the clip lacks.
    """

    clip: str
    path: str = ""
    outputs: np.ndarray
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
    def target(self) -> Target:
        return Classes(self.classes)

    @property
    def outputs(self) -> np.ndarray:
        """The probabilities (N, C)."""
        return self.probabilities

    @property
    def labels(self) -> list[str]:
        """The most probable class of each clip."""
        return [self.classes[index] for index in self.probabilities.argmax(axis=1)]

    def write(self, path: Path) -> None:
        """Write CSV, or JSON Lines for a path that ends in .jsonl: atomically, one row per clip."""
        _write(self, path)

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read what `write` wrote. Raises MertoolError for a file of numbers."""
        predictions = read_predictions(path)
        if isinstance(predictions, NumberPredictions):
            raise MertoolError(f"{path} holds numbers of {predictions.name}, where classes are needed")
        return predictions


@dataclass(frozen=True)
class NumberPredictions:
    """A number (N,) for each clip, such as its valence; the other attributes are as in `Predictions`."""

    clips: tuple[str, ...]
    name: str
    numbers: np.ndarray
    modalities: tuple[tuple[str, ...], ...]
    paths: tuple[str, ...] = ()
    missing: tuple[dict[str, str], ...] = ()

    @property
    def target(self) -> Target:
        return Number(self.name)

    @property
    def outputs(self) -> np.ndarray:
        """The numbers (N, 1)."""
        return self.numbers[:, None]

    def write(self, path: Path) -> None:
        """Write CSV, or JSON Lines for a path that ends in .jsonl: atomically, one row per clip."""
        _write(self, path)


AnyPredictions = Predictions | NumberPredictions


def _write(predictions: AnyPredictions, path: Path) -> None:
    with PredictionsWriter(path, predictions.target) as writer:
        for row, clip in enumerate(predictions.clips):
            prediction = Prediction(
                clip=clip,
                path=predictions.paths[row] if predictions.paths else "",
                outputs=predictions.outputs[row],
                modalities=predictions.modalities[row],
                missing=predictions.missing[row] if predictions.missing else {},
            )
            writer.add(prediction)


def read_predictions(path: Path, name: str | None = None) -> AnyPredictions:
    """Read a predictions file: of classes if it has their probabilities, else of a number.

    `name` is that of the target that is wanted, `emotion` or a number, where a file may hold several.
    """
    if not path.is_file():
        raise MertoolError(f"{path} does not exist: give the predictions file of `mertool predict`")
    if (size := path.stat().st_size) > MAX_TABLE_BYTES:
        raise MertoolError(f"{path} has {size:,} bytes, at most {MAX_TABLE_BYTES:,} are read")
    try:
        records = _read_jsonl(path) if path.suffix == ".jsonl" else _read_csv(path)
        target = _find_target(path, records, name)
        rows = [_parse_record(record, target) for record in records]
        clips = tuple(normalize(row.clip) for row in rows)
        outputs = np.array([row.outputs for row in rows], np.float64).reshape(len(clips), target.n_outputs)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError, csv.Error) as error:
        raise MertoolError(
            f"{path} is not a predictions file (columns clip,label,{PREFIX}<class>...,modalities, or clip,valence, "
            f"arousal or sentiment): {error}"
        ) from error
    if not clips:
        raise MertoolError(f"{path} holds no prediction")
    if repeated := [clip for clip, count in Counter(clips).items() if count > 1]:
        raise MertoolError(f"{path}: clip '{min(repeated)}' stands twice")
    _check_outputs(path, clips, target, outputs)
    facts = (tuple(row.modalities for row in rows), tuple(row.path for row in rows), tuple(row.missing for row in rows))
    if target.classes:
        return Predictions(clips, target.classes, outputs, *facts)
    return NumberPredictions(clips, target.name, outputs[:, 0], *facts)


def _check_outputs(path: Path, clips: tuple[str, ...], target: Target, outputs: np.ndarray) -> None:
    """Raise MertoolError for too many classes, for what is no probability, and for a number that is not finite."""
    if len(target.classes) > MAX_CLASSES:
        raise MertoolError(f"{path} has {len(target.classes):,} classes, at most {MAX_CLASSES:,} are read")
    valid = np.isfinite(outputs).all(1)
    if target.classes:
        valid &= (outputs >= 0).all(1) & (outputs <= 1).all(1)
    else:
        valid &= (np.abs(outputs) <= MAX_NUMBER).all(1)
    if not valid.all():
        first = clips[int(np.flatnonzero(~valid)[0])]
        wrong = "probabilities" if target.classes else target.name
        limits = "not all between 0 and 1" if target.classes else f"not a number from -{MAX_NUMBER:g} to {MAX_NUMBER:g}"
        raise MertoolError(f"{path}: the {wrong} of clip '{first}' {'are' if target.classes else 'is'} {limits}")


class PredictionsWriter:
    """Writes rows as they come, to a temporary file that takes the place of `path` at the end. A context manager.

    `confidence` is the probability of the label.
    """

    def __init__(self, path: Path, target: Target):
        self.path, self.target = path, target
        self._lines = path.suffix == ".jsonl"

    def __enter__(self) -> "PredictionsWriter":
        self._stack = ExitStack()
        self._file = self._stack.enter_context(atomic_open(self.path))
        if not self._lines:
            self._row(["clip", "path", *self.target.columns, "modalities", "missing"])
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, prediction: Prediction) -> None:
        """Write one row."""
        if not self._lines:
            present = "+".join(prediction.modalities)
            missing = "; ".join(f"{modality}: {reason}" for modality, reason in prediction.missing.items())
            cells = self.target.cells(prediction.outputs)
            self._row([prediction.clip, prediction.path, *cells, present, missing])
            return
        record = {
            "clip": prediction.clip,
            "path": prediction.path,
            **self.target.record(prediction.outputs),
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


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """Return the rows in the form that JSON Lines have."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        classes = [name.removeprefix(PREFIX) for name in columns if name.startswith(PREFIX)]
        if not classes and (not NUMBERS.keys() & set(columns) or MANIFEST_COLUMNS & set(columns)):
            raise ValueError(f"no column begins with {PREFIX}")
        return [
            {
                **{name: row[name] for name in NUMBERS if name in columns},
                **({"probabilities": {name: row[PREFIX + name] for name in classes}} if classes else {}),
                "clip": row["clip"],
                "path": row.get("path"),
                # Of numbers by other programs it is not known.
                "modalities": [
                    *filter(None, (row["modalities"] if classes else row.get("modalities") or "").split("+"))
                ],
                "missing": _parse_missing(row.get("missing") or ""),
            }
            for row in reader
        ]


def _parse_missing(cell: str) -> dict[str, str]:
    """Return the reasons by modality, from `video: no_face; text: no_text`."""
    pairs = (entry.partition(":") for entry in cell.split(";") if entry.strip())
    return {modality.strip(): reason.strip() for modality, _, reason in pairs}


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _find_target(path: Path, records: list[dict[str, Any]], name: str | None) -> Target:
    """Return the target `name` of the first record, else the one that it has; raise MertoolError if it is not there."""
    first: dict[str, Any] = records[0] if records else {"probabilities": {}}
    held = [EMOTION] if "probabilities" in first else []
    held += [number for number in NUMBERS if number in first]
    if name and held and name not in held:
        raise MertoolError(f"{path} holds predictions of {held[0]}, not of {name}: give --target {held[0]}")
    found = name or (held[0] if held else EMOTION)
    return Classes(tuple(map(normalize, first["probabilities"]))) if found == EMOTION else Number(found)


def _parse_record(record: dict[str, Any], target: Target) -> Prediction:
    if target.classes:
        probabilities = {normalize(name): value for name, value in record["probabilities"].items()}
        outputs = [float(probabilities[name]) for name in target.classes]
    else:
        outputs = [float(record[target.name])]
    return Prediction(
        clip=record["clip"],
        path=str(record.get("path") or ""),
        outputs=np.array(outputs),
        modalities=tuple(record["modalities"]),
        missing={str(name): str(reason) for name, reason in (record.get("missing") or {}).items()},
    )

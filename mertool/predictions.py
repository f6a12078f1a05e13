"""`Predictions`: label, probabilities and present modalities per clip, as CSV or JSON Lines."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mertool.errors import MertoolError
from mertool.files import write_atomic

PREFIX = "p_"


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
        rows = zip(self.clips, self.labels, self.probabilities.tolist(), self.modalities, strict=True)
        buffer = io.StringIO()
        if path.suffix == ".jsonl":
            for clip, label, row, present in rows:
                scores = dict(zip(self.classes, map(float, map(_digits, row)), strict=True))
                record = {"clip": clip, "label": label, "probabilities": scores, "modalities": list(present)}
                buffer.write(json.dumps(record, ensure_ascii=False) + "\n")
        else:
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerow(["clip", "label", *(PREFIX + name for name in self.classes), "modalities"])
            for clip, label, row, present in rows:
                writer.writerow([clip, label, *map(_digits, row), "+".join(present)])
        write_atomic(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read what `write` wrote."""
        if not path.is_file():
            raise MertoolError(f"{path} does not exist: give the predictions file of `mertool predict`")
        try:
            records = _read_jsonl(path) if path.suffix == ".jsonl" else _read_csv(path)
            clips, rows, modalities, classes = records
            probabilities = np.array(rows, np.float64).reshape(len(clips), len(classes))
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise MertoolError(
                f"{path} is not a predictions file (columns clip,label,{PREFIX}<class>...,modalities): {error}"
            ) from error
        if not clips:
            raise MertoolError(f"{path} holds no prediction")
        sound = np.isfinite(probabilities).all(1) & (probabilities >= 0).all(1) & (probabilities <= 1).all(1)
        if not sound.all():
            first = clips[int(np.flatnonzero(~sound)[0])]
            raise MertoolError(f"{path}: the probabilities of clip '{first}' are not all between 0 and 1")
        repeated = {clip for clip in clips if clips.count(clip) > 1} if len(set(clips)) < len(clips) else set()
        if repeated:
            raise MertoolError(f"{path}: clip '{min(repeated)}' stands twice")
        return cls(tuple(clips), tuple(classes), probabilities, tuple(modalities))


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
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    classes = list(rows[0]["probabilities"]) if rows else []
    return (
        [row["clip"] for row in rows],
        [[float(row["probabilities"][name]) for name in classes] for row in rows],
        [tuple(row["modalities"]) for row in rows],
        classes,
    )

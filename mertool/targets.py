"""`Target`: the label that a stage predicts of each clip, which is one of several classes or a number.

It says which labels of the manifest it takes, how many outputs a model has, how these are decided, and the columns of
predictions files. `Measure` holds its scores. Losses are with the models: `probing.objectives`, `fusion.objectives`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from mertool.manifest import Manifest
from mertool.options.shared import EMOTION
from mertool.significance import ClassMeasure, Measure, NumberMeasure, SentimentMeasure

PREFIX = "p_"  # of the columns of probabilities


class Target(ABC):
    """The label that is predicted.

    Attributes:
        name: `emotion` for classes, else the name of the number.
        classes: Names of the classes; empty for a number.
        n_outputs: Outputs of a model for each clip: one per class, or 1.
        measure: The scores.
        columns: Names of its columns in a predictions file.
    """

    name: str
    classes: tuple[str, ...]

    @property
    @abstractmethod
    def n_outputs(self) -> int: ...

    @property
    @abstractmethod
    def measure(self) -> Measure: ...

    @property
    @abstractmethod
    def columns(self) -> list[str]: ...

    @abstractmethod
    def training_labels(self, manifest: Manifest) -> dict[str, Any]:
        """Return the label of each training clip that has one: the index of its class, or its number."""

    @abstractmethod
    def known_labels(self, manifest: Manifest) -> dict[str, Any]:
        """Return the same of every clip whose label may be scored, whatever its split."""

    @abstractmethod
    def decide(self, outputs: np.ndarray) -> np.ndarray:
        """Return the predicted class indices or numbers (...,) from outputs (..., n_outputs)."""

    @abstractmethod
    def cells(self, outputs: np.ndarray) -> list[str]:
        """Return the cells of a row in a predictions file, for outputs (n_outputs,), probabilities or a number."""

    @abstractmethod
    def record(self, outputs: np.ndarray) -> dict[str, Any]:
        """Return the same as JSON Lines have it."""


@dataclass(frozen=True)
class Classes(Target):
    """One of several classes."""

    classes: tuple[str, ...]
    name = EMOTION

    @property
    def n_outputs(self) -> int:
        return len(self.classes)

    @property
    def measure(self) -> Measure:
        return ClassMeasure(len(self.classes))

    @property
    def columns(self) -> list[str]:
        return ["label", "confidence", *(PREFIX + name for name in self.classes)]

    def training_labels(self, manifest: Manifest) -> dict[str, int]:
        return self._indices(manifest.training_labels(self.classes))

    def known_labels(self, manifest: Manifest) -> dict[str, int]:
        return self._indices(manifest.known_labels(self.classes))

    def decide(self, outputs: np.ndarray) -> np.ndarray:
        return outputs.argmax(-1)

    def cells(self, outputs: np.ndarray) -> list[str]:
        best, digits = int(outputs.argmax()), [*map(_digits, outputs.tolist())]
        return [self.classes[best], digits[best], *digits]

    def record(self, outputs: np.ndarray) -> dict[str, Any]:
        label, confidence, *digits = self.cells(outputs)
        probabilities = dict(zip(self.classes, map(float, digits), strict=True))
        return {"label": label, "confidence": float(confidence), "probabilities": probabilities}

    def _indices(self, labels: dict[str, str]) -> dict[str, int]:
        return {clip: self.classes.index(label) for clip, label in labels.items()}


@dataclass(frozen=True)
class Number(Target):
    """A number: valence, arousal or sentiment (see `manifest.NUMBERS`)."""

    name: str
    classes = ()
    n_outputs = 1

    @property
    def measure(self) -> Measure:
        return SentimentMeasure() if self.name == "sentiment" else NumberMeasure()

    @property
    def columns(self) -> list[str]:
        return [self.name]

    def training_labels(self, manifest: Manifest) -> dict[str, float]:
        return manifest.training_numbers(self.name)

    def known_labels(self, manifest: Manifest) -> dict[str, float]:
        return manifest.known_numbers(self.name)

    def decide(self, outputs: np.ndarray) -> np.ndarray:
        return outputs[..., 0]

    def cells(self, outputs: np.ndarray) -> list[str]:
        return [_digits(float(outputs[0]))]

    def record(self, outputs: np.ndarray) -> dict[str, Any]:
        return {self.name: float(self.cells(outputs)[0])}


def make_target(name: str, classes: tuple[str, ...]) -> Target:
    """Return the target of this name; `classes` are those of an emotion."""
    return Classes(classes) if name == EMOTION else Number(name)


def _digits(value: float) -> str:
    """All that single precision holds, so that a near tie is read as it was written."""
    return f"{value:.9g}"

"""Options of the stage `probe-layers`."""

from dataclasses import dataclass
from pathlib import Path

from mertool.errors import MertoolError, check_choice
from mertool.manifest import EMOTIONS

ESTIMATORS = ("logistic", "ridge")


@dataclass(frozen=True, kw_only=True)
class ProbeLayersOptions:
    """What is probed, and how.

    folds: parts of the cross-validation, or a file of them. seeds: repetitions, with other folds unless they are
    of a file, and with other starts of the perceptrons. width: layers in the recommended window (None: chosen).
    injection: also train a short adapter in windows of that width, to see where one helps.
    """

    folds: int | Path = 5
    seeds: int = 3
    estimator: str = "logistic"
    mlp: bool = True
    width: int | None = None
    injection: bool = False
    seed: int = 0
    device: str = "auto"
    classes: tuple[str, ...] = EMOTIONS
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, ESTIMATORS)
        if self.width is not None and self.width < 1:
            raise MertoolError(f"a window of {self.width} layers: give --width 1 or more")
        if self.seeds < 1:
            raise MertoolError(f"{self.seeds} seeds: give --seeds 1 or more")

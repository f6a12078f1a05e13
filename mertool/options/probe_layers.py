"""Options of the stage `probe-layers`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mertool.options import shared
from mertool.options.option import Options, option

ESTIMATORS = ("logistic", "ridge")


@dataclass(frozen=True, kw_only=True)
class ProbeLayersOptions(Options):
    """Options of the probes and of the recommended window."""

    folds: int | Path = shared.folds()
    seeds: int = option(
        3,
        help="Repetitions, with other folds (unless a file gives them) and other initial weights of the MLP.",
        minimum=1,
    )
    target: str = shared.target()
    estimator: str = option("logistic", help="Linear probe of classes; a number has ridge.", choices=ESTIMATORS)
    mlp: bool = option(True, help="Also probe with a small multilayer perceptron.")
    width: int | None = option(
        None,
        help="Number of layers in the recommended window.",
        minimum=1,
        default_help="all neighbouring layers that are as good as the best",
    )
    injection: bool = option(
        False, help="Also train a short adapter in several windows of layers, to see where one helps most."
    )
    classes: tuple[str, ...] = shared.classes()
    device: str = shared.device()
    overwrite: bool = shared.overwrite()
    seed: int = shared.seed()

    def conflicts(self) -> Iterator[str]:
        yield from shared.target_conflicts(self.target, self.classes, {"--injection": self.injection})

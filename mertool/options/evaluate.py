"""Options of the stage `evaluate`."""

from dataclasses import dataclass
from pathlib import Path

from mertool.errors import MertoolError, check_choice
from mertool.features import MODALITIES


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure beside the scores, with the bundle that predicted and the features beside its predictions.

    missing: modalities, each of which is left out in turn.
    noise: a folder of sounds, or `babble` (other clips of the manifest): mixed in at 5 to 10 dB, the picture blurred.
    seed: of the bootstrap, and of what noise each clip gets.
    """

    bundle: Path | None = None
    missing: tuple[str, ...] = ()
    noise: str | None = None
    seed: int = 0
    device: str = "auto"
    workers: int | None = None
    clip_timeout: float = 120.0

    def __post_init__(self) -> None:
        for modality in self.missing:
            check_choice("modality", modality, MODALITIES)
        if (self.missing or self.noise) and not self.bundle:
            raise MertoolError("--missing and --noise need the bundle that predicted: give --bundle runs/fusion")
        if self.bundle and not (self.missing or self.noise):
            raise MertoolError("--bundle is for --missing audio|video|text and --noise FOLDER: give one of them")

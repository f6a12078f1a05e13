"""Options of the stage `evaluate`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mertool.features import MODALITIES
from mertool.manifest import parse_classes
from mertool.options import shared
from mertool.options.option import Options, option


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Options):
    """Options of the evaluation under missing modalities and noise."""

    bundle: Path | None = option(None, help="Run of `mertool fuse` that predicted, for --missing and --noise.")
    missing: tuple[str, ...] = option(
        (), help="Evaluate without this modality, may be given repeatedly.", noun="modality", choices=MODALITIES
    )
    noise: str | None = option(
        None,
        help="Evaluate with noise at 5 to 10 dB from a folder of audio files, or from other clips (babble).",
        metavar="FOLDER|babble",
    )
    target: str | None = shared.target(None, default_help="that of the predictions")
    classes: tuple[str, ...] | None = option(
        None,
        help="Class names, comma-separated; labels that are numbers are indices of these names.",
        metavar="NAMES",
        parse=parse_classes,
        validate=shared.check_classes,
        default_help="those of the predictions",
    )
    device: str = shared.device()
    workers: int | None = shared.workers()
    clip_timeout: float = shared.clip_timeout()
    seed: int = shared.seed()

    def conflicts(self) -> Iterator[str]:
        yield from shared.target_conflicts(self.target, self.classes, {"--bundle": bool(self.bundle)})
        if (self.missing or self.noise) and not self.bundle:
            yield "--missing and --noise need the bundle that predicted: give --bundle runs/fusion"
        if self.bundle and not (self.missing or self.noise):
            yield "--bundle is for --missing audio|video|text and --noise FOLDER: give one of them"

"""Options of the stage `fuse`."""

from dataclasses import dataclass
from pathlib import Path

from mertool import registry
from mertool.errors import MertoolError, check_choice
from mertool.manifest import EMOTIONS

HEADS = "fusion.heads"
NESTED, MERTOOLS = "nested", "mertools"
PROTOCOLS = (NESTED, MERTOOLS)


@dataclass(frozen=True, kw_only=True)
class FuseOptions:
    """head: a file of mertool/fusion. folds x seeds members are trained. width: hidden size of the head.

    folds: a number, a file of folds, or None: those of the adapters where features are adapted, else five. search:
    draws of width, dropout and learning rate, of which one is chosen (see training/system.py); 0 takes the given ones.
    unlabelled: stores of other clips, a partner for each store; rounds: of self-training, None is 3, 0 none; prior:
    estimate the shares of classes among them, and correct for it. calibrate: fit a temperature on out-of-fold logits.
    protocol: `nested`, or `mertools`, the official and optimistic one. epochs: all, or where they are chosen the most.
    The rest is explained at `Schedule`. None is the protocol's own: see `settings`.
    """

    head: str | None = None
    folds: int | Path | None = None
    seeds: int | None = None
    search: int = 0
    protocol: str = NESTED
    width: int = 128
    dropout: float = 0.3
    learning_rate: float = 1e-3
    epochs: int | None = None
    batch: int = 32
    modality_dropout: float | None = None
    feature_noise: float = 0.0
    mixup: float = 0.0
    label_smoothing: float = 0.0
    class_weights: bool = False
    contrast: float = 0.0
    unlabelled: tuple[Path, ...] = ()
    rounds: int | None = None
    prior: bool = False
    calibrate: bool = True
    seed: int = 0
    device: str = "auto"
    classes: tuple[str, ...] = EMOTIONS
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.head is not None:
            registry.check(HEADS, "fusion head", self.head)
        check_choice("protocol", self.protocol, list(PROTOCOLS))
        counts = [number for number in (self.seeds, self.width, self.epochs, self.batch) if number is not None]
        if min(counts) < 1 or self.search < 0:
            raise MertoolError("--seeds, --width, --epochs and --batch must be at least 1, --search at least 0")
        shares = ("dropout", "modality_dropout", "label_smoothing")
        wrong = [name for name in shares if not 0 <= (getattr(self, name) or 0) < 1]
        if wrong:
            name = wrong[0]
            raise MertoolError(f"--{name.replace('_', '-')} {getattr(self, name):g}: give a number from 0 to below 1")
        if min(self.feature_noise, self.mixup, self.contrast) < 0:
            raise MertoolError("--feature-noise, --mixup and --contrast must not be negative")
        if not 0 < self.learning_rate < 1:
            raise MertoolError(f"--learning-rate {self.learning_rate:g}: give a number between 0 and 1")
        if self.rounds is not None and (self.rounds < 0 or not self.unlabelled):
            raise MertoolError(f"--rounds {self.rounds}: give rounds of self-training on --unlabelled stores, or 0")
        if self.prior and not self.unlabelled:
            raise MertoolError("--prior estimates the shares of classes in other clips: give their --unlabelled stores")
        if self.unlabelled and self.rounds == 0 and not self.prior:
            raise MertoolError("--unlabelled with --rounds 0 does nothing: give --prior, or rounds")

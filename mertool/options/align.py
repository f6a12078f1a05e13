"""Options of the stage `align`."""

from dataclasses import dataclass

from mertool import registry
from mertool.errors import MertoolError, check_choice
from mertool.manifest import EMOTIONS

LOSSES = "alignment.losses"
FALSE_NEGATIVES = ("none", "threshold", "pseudo-class")
HEADS = 4  # of the transformer over frames


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """loss: a file of mertool/alignment/losses. false_negatives: one of FALSE_NEGATIVES, None: what suits the loss.

    width, blocks: of the transformer over frames. epochs: at most; None: about 3,000 steps, at most 100 epochs.
    patience: epochs without a better development loss before the end. batch: clips a step, over all devices; None: a
    sixteenth of the clips, 64 to 1,024.
    """

    loss: str = "infonce"
    false_negatives: str | None = None
    width: int = 256
    blocks: int = 2
    dropout: float = 0.1
    epochs: int | None = None
    patience: int = 10
    batch: int | None = None
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    seed: int = 0
    device: str = "auto"
    classes: tuple[str, ...] = EMOTIONS
    overwrite: bool = False

    def __post_init__(self) -> None:
        registry.check(LOSSES, "loss", self.loss)
        if self.false_negatives is not None:
            check_choice("--false-negatives", self.false_negatives, FALSE_NEGATIVES)
            if self.false_negatives != "none" and not registry.load(LOSSES, "loss", self.loss).NEGATIVES:
                raise MertoolError(
                    f"--loss {self.loss} pushes no clips apart, so it has no false negatives: leave out "
                    "--false-negatives, or take --loss infonce or siglip"
                )
        if self.width < HEADS or self.width % HEADS:
            raise MertoolError(f"--width {self.width}: give a multiple of {HEADS}, the heads of the transformer")
        if self.blocks < 1:
            raise MertoolError(f"--blocks {self.blocks}: give at least 1")
        if self.epochs is not None and self.epochs < 1:
            raise MertoolError(f"--epochs {self.epochs}: give at least 1")
        if (self.batch is not None and self.batch < 2) or self.patience < 1:
            raise MertoolError("--batch must be at least 2, --patience at least 1")
        if not 0 < self.learning_rate < 1:
            raise MertoolError(f"--learning-rate {self.learning_rate:g}: give a number between 0 and 1")

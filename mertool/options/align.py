"""Options of the stage `align`."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from mertool import registry
from mertool.options import shared
from mertool.options.option import Options, option

LOSSES = "alignment.losses"
FALSE_NEGATIVES = ("none", "threshold", "pseudo-class")
HEADS = 4  # of the transformer over frames


@dataclass(frozen=True, kw_only=True)
class AlignOptions(Options):
    """Options of the visual encoder and its training."""

    loss: str = option(
        "infonce", help="Loss between visual and acoustic vectors.", choices=partial(registry.choices, LOSSES)
    )
    false_negatives: str | None = option(
        None,
        help="Clip pairs that are excluded from the negatives because their audio is similar.",
        noun="--false-negatives",
        choices={
            "none": "",
            "threshold": "the most similar pairs",
            "pseudo-class": "pairs of the same cluster",
        },
        default_help="threshold where the loss has negatives",
    )
    width: int = option(256, help="Channels inside the transformer over frames, a multiple of 4.", minimum=1)
    blocks: int = option(2, help="Blocks of the transformer.", minimum=1)
    dropout: float = option(0.1, help="Dropout in the transformer.", minimum=0, below=1, on_command_line=False)
    epochs: int | None = option(
        None,
        help="Most passes over the clips.",
        minimum=1,
        default_help="about 3,000 steps, at most 100 epochs",
        group=shared.TRAINING,
    )
    patience: int = shared.patience(10)
    batch: int | None = option(
        None,
        help="Clips per step over all devices, each a negative of the others.",
        minimum=2,
        default_help="a sixteenth of the clips, 64 to 1,024",
        group=shared.TRAINING,
    )
    learning_rate: float = shared.learning_rate(5e-4)
    weight_decay: float = option(0.05, help="Weight decay of AdamW.", minimum=0, below=1, on_command_line=False)
    classes: tuple[str, ...] = shared.classes()
    device: str = shared.device()
    overwrite: bool = shared.overwrite()
    seed: int = shared.seed()

    def conflicts(self) -> Iterator[str]:
        if self.width % HEADS:
            yield f"--width {self.width}: give a multiple of {HEADS}, the heads of the transformer"
        # Loading a loss imports torch, so only where the answer matters.
        if (self.false_negatives or "none") != "none" and not registry.load(LOSSES, "loss", self.loss).NEGATIVES:
            yield (
                f"--loss {self.loss} pushes no clips apart, so it has no false negatives: leave out "
                "--false-negatives, or take --loss infonce or siglip"
            )

"""Options of the stage `fuse`."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mertool import registry
from mertool.options import shared
from mertool.options.option import Options, option

HEADS = "fusion.heads"
NESTED, MERTOOLS = "nested", "mertools"
PROTOCOLS = {NESTED: "", MERTOOLS: "the official one, whose scores are optimistic"}


@dataclass(frozen=True, kw_only=True)
class FuseOptions(Options):
    """Options of the fusion head, its training, the unlabelled clips and the corrections."""

    target: str = shared.target()
    head: str | None = option(
        None,
        help="Fusion head.",
        noun="fusion head",
        choices=partial(registry.choices, HEADS),
        default_help="attention, with mertools attention-mertools",
    )
    folds: int | Path | None = shared.folds(None, default_help="those of the adapters, else 5")
    seeds: int | None = option(None, help="Members per fold.", minimum=1, default_help="3, with mertools 6")
    search: int = option(
        0,
        help="Random draws of width, dropout and learning rate, of which each fold chooses one on its own clips.",
        minimum=0,
    )
    protocol: str = option(NESTED, help="Protocol of the choice of hyper-parameters and epochs.", choices=PROTOCOLS)
    width: int = option(128, help="Hidden size of the head; --search draws its own.", minimum=1)
    dropout: float = option(0.3, help="Dropout in the head, drawn by --search.", minimum=0, below=1)
    learning_rate: float = option(1e-3, help="Learning rate, drawn by --search.", above=0, below=1)
    epochs: int | None = option(
        None,
        help="Passes over the training clips.",
        minimum=1,
        default_help="60, with a search or mertools at most 100",
    )
    batch: int = option(32, help="Clips per step.", minimum=1)
    modality_dropout: float | None = option(
        None,
        help="Share of modalities hidden in training.",
        minimum=0,
        below=1,
        default_help="0.15, with mertools 0",
    )
    label_smoothing: float = option(0.0, help="Share of the label that is spread over all classes.", minimum=0, below=1)
    class_weights: bool = option(False, help="Weight the loss by inverse class frequency.")
    unlabelled: tuple[Path, ...] = option(
        (),
        help="Store of clips without labels to learn from as well, one for each store; may be given repeatedly.",
    )
    rounds: int | None = option(
        None,
        help="Rounds of self-training on the unlabelled clips, 0 for none.",
        minimum=0,
        default_help="3 with --unlabelled",
    )
    prior: bool = option(False, help="Correct for the class frequencies that the unlabelled clips seem to have.")
    unimodal: bool = option(True, help="Also train each store by itself, for comparison.")
    calibrate: bool = option(True, help="Calibrate probabilities by temperature scaling.")
    classes: tuple[str, ...] = shared.classes()
    device: str = shared.device()
    overwrite: bool = shared.overwrite()
    seed: int = shared.seed()

    def conflicts(self) -> Iterator[str]:
        given = {
            "--protocol mertools": self.protocol == MERTOOLS,
            "--label-smoothing": self.label_smoothing > 0,
            "--class-weights": self.class_weights,
            "--unlabelled": bool(self.unlabelled),
            "--prior": self.prior,
        }
        yield from shared.target_conflicts(self.target, self.classes, given)
        if self.rounds is not None and not self.unlabelled:
            yield f"--rounds {self.rounds}: give rounds of self-training on --unlabelled stores, or 0"
        if self.prior and not self.unlabelled:
            yield "--prior estimates the shares of classes in other clips: give their --unlabelled stores"
        if not self.unimodal and self.unlabelled and self.rounds != 0:
            yield "--no-unimodal: pseudo-labels need the agreement of single stores: leave it out, or give --rounds 0"
        if self.unlabelled and self.rounds == 0 and not self.prior:
            yield "--unlabelled with --rounds 0 does nothing: give --prior, or rounds"

"""Options of the stage `finetune`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path

from mertool import registry
from mertool.errors import MertoolError
from mertool.options import shared
from mertool.options.option import Options, option

METHODS = "adapters.methods"
DEFAULT_METHOD = "lora"
MASK_TARGETS = {"units": "k-means clusters", "features": "", "logmel": ""}
CLASS_WEIGHTS = {"none": "", "balanced": "inverse class frequency"}
UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
LOSS, TRAINING = "Loss", shared.TRAINING


def parse_budget(text: str) -> int:
    """A number of parameters: `800k`, `1.6M` or `1600000`. Raises MertoolError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([km]?)", text.strip().lower())
    count = Decimal(match[1]) * UNITS[match[2]] if match else Decimal(0)
    if count < 1 or count != int(count):
        raise MertoolError(f"budget '{text}': give a number of parameters such as 800k, 1.6M or 1600000")
    return int(count)


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(Options):
    """Options of the adapted layers, the PEFT method, the training and its loss."""

    probe: Path | None = option(
        None, help="A probe-layers run: its encoder and its recommended window of layers.", affects_result=False
    )
    layers: str | None = option(
        None,
        help="Transformer blocks to adapt, counted from 1, such as 16-21.",
        default_help="the window of --probe",
    )
    encoder: str | None = option(
        None,
        help="Encoder: a name of `mertool models`, a hub id or a local folder.",
        default_help="that of --probe, else hubert-large-zh",
    )
    method: str = option(
        DEFAULT_METHOD, help="PEFT method.", noun="PEFT method", choices=partial(registry.choices, METHODS)
    )
    size: int | None = option(
        None,
        help="Bottleneck width, LoRA rank or number of prompts.",
        minimum=1,
        default_help="the method's own",
    )
    budget: int | None = option(
        None,
        help="Number of trainable parameters, such as 1.6M or 800k, from which the size follows.",
        metavar="NUMBER",
        minimum=1,
        parse=parse_budget,
    )
    compare: tuple[str, ...] = option(
        (),
        help="PEFT methods to train and to test against the best of them, comma-separated.",
        metavar="METHODS",
        noun="PEFT method",
        choices=partial(registry.choices, METHODS),
        parse=shared.split_names,
        affects_result=False,
    )
    folds: int | Path = shared.folds()
    epochs: int = option(10, help="Passes over the training clips.", minimum=1, group=TRAINING)
    batch: int = option(16, help="Labelled clips per step.", minimum=1, group=TRAINING)
    learning_rate: float | None = shared.learning_rate(None, " of the adapters", "the method's own")
    prefix_cache: bool = option(
        True,
        help="Start from stored frames below the first adapted block, or run every block each time.",
        group=TRAINING,
    )
    mask_weight: float = option(
        0.0, help="Weight of the masked reconstruction beside the cross-entropy, such as 0.1.", minimum=0, group=LOSS
    )
    mask_target: str = option(
        "units", help="Target of the reconstruction of masked frames.", choices=MASK_TARGETS, group=LOSS
    )
    target_layer: int | None = option(
        None,
        help="Frozen layer of the units or features.",
        minimum=0,
        default_help="three quarters of the layers",
        group=LOSS,
    )
    unlabelled: int = option(
        2000, help="Most unlabelled clips that join the masked reconstruction.", minimum=0, group=LOSS
    )
    class_weights: str = option("none", help="Class weights of the loss.", choices=CLASS_WEIGHTS, group=LOSS)
    label_smoothing: float = option(
        0.1, help="Share of the label that is spread over all classes.", minimum=0, maximum=0.9, group=LOSS
    )
    classes: tuple[str, ...] = shared.classes()
    device: str = shared.device()
    dtype: str = shared.dtype()
    workers: int | None = shared.workers()
    clip_timeout: float = shared.clip_timeout()
    overwrite: bool = shared.overwrite()
    seed: int = shared.seed()

    def conflicts(self) -> Iterator[str]:
        if self.probe is None and self.layers is None:
            yield "which layers? Give --probe RUN (of `mertool probe-layers`) or --layers as 16-21"
        # The default method cannot be told from one that was given; it does no harm here.
        if self.compare and self.method != DEFAULT_METHOD:
            yield "--compare names the methods to train: leave out --method"
        if self.compare and len(set(self.compare)) < max(2, len(self.compare)):
            yield "--compare takes two methods or more, each once, as bottleneck,lora,bitfit"
        if self.size is not None and self.budget is not None:
            yield "--size and --budget both say how large the adapter is: give one of them"
        elif self.size is not None and registry.load(METHODS, "PEFT method", self.method).SIZE is None:
            yield f"--method {self.method} has no size: leave out --size"
        if self.mask_weight == 0 and (self.target_layer is not None or self.mask_target != "units"):
            given = "--mask-target" if self.target_layer is None else "--target-layer"
            yield f"{given}: --mask-weight 0 masks nothing, leave {given} out or give a weight such as 0.1"
        elif self.mask_target == "logmel" and self.target_layer is not None:
            yield f"--target-layer {self.target_layer}: --mask-target logmel reads no layer, leave it out"

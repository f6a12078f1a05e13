"""Options of the stage `finetune`."""

from dataclasses import dataclass
from pathlib import Path

from mertool import registry
from mertool.errors import MertoolError, check_choice
from mertool.manifest import EMOTIONS

METHODS = "adapters.methods"
MASK_TARGETS = ("units", "features", "logmel")
CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """What to adapt and how.

    encoder: table name, hub id or folder. layers: blocks to adapt, counted from 1. method: a file of
    mertool/peft_methods. size: bottleneck width, rank or number of prompts; None is the method's default.
    budget: trainable parameters, which set the size. folds: a number or a file of folds.
    epochs: at most; patience: epochs without a better development loss before the end. batch: labelled clips a step.
    learning_rate: the peak of the adapters; None is the method's own.
    mask_target: what hidden frames are compared with, of `target_layer` (None: three quarters of the way up).
    unlabelled: clips of the split `unlabelled` that join the masked loss, at most.
    prefix_cache: start from stored frames below the first adapted block; else run every block each time.
    """

    encoder: str
    layers: str
    method: str = "bottleneck"
    size: int | None = None
    budget: int | None = None
    folds: int | Path = 5
    epochs: int = 30
    patience: int = 5
    batch: int = 16
    learning_rate: float | None = None
    seed: int = 0
    mask_weight: float = 0.1
    mask_target: str = "units"
    target_layer: int | None = None
    unlabelled: int = 2000
    class_weights: str = "none"
    label_smoothing: float = 0.0
    prefix_cache: bool = True
    device: str = "auto"
    dtype: str = "auto"
    workers: int | None = None
    clip_timeout: float = 120.0
    classes: tuple[str, ...] = EMOTIONS
    overwrite: bool = False

    def __post_init__(self) -> None:
        registry.check(METHODS, "PEFT method", self.method)
        check_choice("mask target", self.mask_target, MASK_TARGETS)
        if self.size is not None and self.budget is not None:
            raise MertoolError("--size and --budget both say how large the adapter is: give one of them")
        if self.size is not None and self.size < 1:
            raise MertoolError(f"--size {self.size}: give at least 1")
        if self.size is not None and registry.load(METHODS, "PEFT method", self.method).SIZE is None:
            raise MertoolError(f"--method {self.method} has no size: leave out --size")
        if self.unlabelled < 0:
            raise MertoolError(f"--unlabelled {self.unlabelled}: give 0 (none) or more")
        if self.target_layer is not None and (self.mask_weight == 0 or self.mask_target == "logmel"):
            why = "--mask-weight 0 hides nothing" if self.mask_weight == 0 else "--mask-target logmel reads no layer"
            raise MertoolError(f"--target-layer {self.target_layer}: {why}, leave it out")
        check_choice("class weights", self.class_weights, CLASS_WEIGHTS)
        if not 0 <= self.label_smoothing < 1:
            raise MertoolError(f"--label-smoothing {self.label_smoothing:g}: give a number from 0 to below 1")
        if not 0 <= self.mask_weight < float("inf"):
            raise MertoolError(f"--mask-weight {self.mask_weight:g}: give 0 (no masks) or more")
        if min(self.epochs, self.batch, self.patience) < 1:
            raise MertoolError("--epochs, --batch and --patience must be at least 1")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise MertoolError(f"--learning-rate {self.learning_rate:g}: give a number between 0 and 1")

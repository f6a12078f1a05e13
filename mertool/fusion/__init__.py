"""Fusion heads, one file each: a module with `build(shapes, classes, width, dropout)`.

A head takes the features of all modalities, a list of (B, L, D), and which are present (B, M), and gives
logits (B, C). A modality that is absent must not change the logits, whatever its values.
"""

from torch import nn

from mertool import registry

PACKAGE = "fusion"


def build(name: str, shapes: list[tuple[int, int]], classes: int, width: int, dropout: float) -> nn.Module:
    """A fresh head for modalities of `shapes` (layers, channels)."""
    return registry.load(PACKAGE, "fusion head", name).build(shapes, classes, width, dropout)

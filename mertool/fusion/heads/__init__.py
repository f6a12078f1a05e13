"""Fusion heads, one file each: a module with `build(shapes, classes, width, dropout)`.

A head takes the features of all modalities, a list of (B, L, D), and which are present (B, M), and gives
logits (B, C). A modality that is absent must not change the logits, whatever its values. Heads are made of the layers
in `_layers.py`, so that many of them, stacked, are one head with an axis of members in front of everything.
"""

from mertool import registry
from mertool.fusion.heads._inputs import Head
from mertool.fusion.heads._layers import Dropout, stack

PACKAGE = "fusion.heads"

__all__ = ["PACKAGE", "Dropout", "Head", "build", "stack"]


def build(name: str, shapes: list[tuple[int, int]], classes: int, width: int, dropout: float) -> Head:
    """A fresh head for modalities of `shapes` (entries, channels)."""
    return registry.load(PACKAGE, "fusion head", name).build(shapes, classes, width, dropout)

"""Fusion heads, one file each: a module with `build(shapes, *, classes, width, dropout)`, which returns a `FusionHead`.

A head takes the features of P modalities, a list of (B, L, D), and which are present, (B, P), and returns logits (B, C).
The values of an absent modality never change the logits. Heads are made of the layers in `_layers.py`, so that the
same code trains one head, or a stack of many with an axis of ensemble members in front.
"""

from dataclasses import dataclass

from mertool import registry
from mertool.fusion.heads._layers import stack_members
from mertool.fusion.heads._projection import FusionHead, Shapes

PACKAGE = "fusion.heads"

__all__ = ["PACKAGE", "FusionHead", "HeadSpec", "Shapes", "build", "stack_members"]


def build(name: str, shapes: Shapes, *, classes: int, width: int, dropout: float) -> FusionHead:
    """Return a head with new random weights, for modalities of `shapes`. Raises MertoolError for an unknown name."""
    module = registry.load(PACKAGE, "fusion head", name)
    return module.build(shapes, classes=classes, width=width, dropout=dropout)


@dataclass(frozen=True)
class HeadSpec:
    """What all members of an ensemble have in common: the name of their head, its modalities and number of classes."""

    name: str
    shapes: Shapes
    classes: int

    def build(self, *, width: int, dropout: float = 0.0) -> FusionHead:
        """Return a head with new random weights."""
        return build(self.name, self.shapes, classes=self.classes, width=width, dropout=dropout)

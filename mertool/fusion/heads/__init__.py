"""Fusion heads, one file each: a module whose `build(shapes, *, classes, width, dropout)` returns a `FusionHead`.

A head takes the features of P modalities, a list of (B, L, D), and which are present, (B, P); it returns logits (B, C).
Of a number C is 1, and the output has no meaning yet: `NumberHead` gives it the scale of the training clips.
The values of an absent modality never change the logits. Heads are made of the layers in `_layers.py`, so that the
same code trains one head, or a stack of many with an axis of ensemble members in front.
"""

from dataclasses import dataclass

from mertool import registry
from mertool.fusion.heads._layers import stack_members
from mertool.fusion.heads._number import NumberHead
from mertool.fusion.heads._projection import FusionHead, Shapes

__all__ = ["FusionHead", "HeadSpec", "NumberHead", "Shapes", "stack_members"]


@dataclass(frozen=True)
class HeadSpec:
    """The head that all members of an ensemble have.

    Attributes:
        name: Name of a file of this package, with hyphens.
        shapes: (L, D) of each modality: layers or spans, and channels.
        classes: Number of classes; 1 for a number, which is one output.
    """

    name: str
    shapes: Shapes
    classes: int

    def build(self, *, width: int, dropout: float = 0.0) -> FusionHead:
        """Return a head with new random weights. Raises MertoolError for an unknown name."""
        module = registry.load("fusion.heads", "fusion head", self.name)
        head = module.build(self.shapes, classes=self.classes, width=width, dropout=dropout)
        return NumberHead(head) if self.classes == 1 else head

"""Losses between visual and acoustic vectors of the same clips; each file of this folder is one loss.

A file defines `build()` and `NEGATIVES`. `build()` returns an nn.Module, which may have parameters of its own (a
temperature). Its `forward(visual, acoustic, false_negatives)` takes vectors (B, A) and (B, A), whose row i is the same
clip, and a mask (B, B), true for pairs of different clips that are not to be pushed apart; it returns a scalar.
`NEGATIVES` is True if the loss pushes clips apart at all, so that it uses the mask.
"""

from types import ModuleType

from mertool import registry

PACKAGE = "alignment.losses"


def load(name: str) -> ModuleType:
    """Return the module of one loss; an unknown name raises MertoolError."""
    return registry.load(PACKAGE, "loss", name)

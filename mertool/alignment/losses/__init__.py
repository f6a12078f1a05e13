"""Losses between visual and acoustic vectors of the same clips, one file each: a module with `build()`.

`build()` gives an nn.Module, perhaps with parameters of its own (a temperature). It is called with visual (B, A),
acoustic (B, A), where row i of both is clip i, and `same` (B, B), true where two different clips count as no
negatives of each other; it returns a scalar. `NEGATIVES` says whether other clips are pushed away at all, so that
`same` matters.
"""

from types import ModuleType

from mertool import registry

PACKAGE = "alignment.losses"


def load(name: str) -> ModuleType:
    """The module of one loss."""
    return registry.load(PACKAGE, "loss", name)

"""File formats of other toolkits: one file each, found by itself.

A file of this folder declares, as a literal at its top,

    TITLE           what messages call a file of the format

and has some of these functions:

    recognises(path) -> bool                    whether a file or folder may be of the format; reads little
    read_labels(path) -> Annotations            labels, texts, speakers and splits by clip
    recognises_features(path) -> bool           the same for features
    read_features(path, ...) -> FeatureSource   features by clip (see mertool.interop.features)

Where several formats recognise a path, the one with the highest PRIORITY (default 0) reads it.
"""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from mertool import registry

PACKAGE = "interop.formats"


def titles_with(function: str) -> str:
    """Return the titles of all formats that have a function, for messages: `a CSV (...), ... or ...`."""
    titles = [module.TITLE for module in reversed(list(_modules())) if hasattr(module, function)]
    return ", ".join(titles[:-1]) + f", or {titles[-1]}"


def find_format(path: Path, check: str = "recognises") -> ModuleType | None:
    """Return the format that a file or folder is of, by a function of the formats; None if there is none."""
    return next((module for module in _modules() if hasattr(module, check) and getattr(module, check)(path)), None)


def _modules() -> Iterator[ModuleType]:
    modules = [registry.load(PACKAGE, "format", name) for name in registry.choices(PACKAGE)]
    yield from sorted(modules, key=lambda module: -getattr(module, "PRIORITY", 0))

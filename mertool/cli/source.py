"""Reading the clips that a command works on, and telling how they were read."""

from collections.abc import Iterable
from pathlib import Path

from mertool.cli.console import is_first_process, warn
from mertool.manifest import Manifest


def read_source(source: Path) -> Manifest:
    """Read a manifest or a folder, and print notes on it (files left out, an encoding) on standard error."""
    manifest = Manifest.read(source)
    tell_notes(manifest.notes)
    return manifest


def tell_notes(notes: Iterable[str]) -> None:
    """Print notes on standard error, from the first of several processes."""
    if is_first_process():
        for note in notes:
            warn(f"note: {note}")

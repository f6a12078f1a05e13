"""`StoreTarget`: a store that an extraction writes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mertool.features import Recipe
from mertool.store import PartWriter, StoreWriter, check_store


@dataclass(frozen=True, kw_only=True)
class StoreTarget:
    """A store that an extraction writes.

    path: the HDF5 file.
    recipe: everything that changes its values.
    provenance: where the encoder and its trained parts were found; changes no value.
    aligner: the folder of the aligner that the recipe names, if any.
    overwrite: whether a store of another recipe is replaced instead of refused.
    """

    path: Path
    recipe: Recipe
    provenance: dict[str, Any] = field(default_factory=dict)
    aligner: Path | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Raise MertoolError if the file at `path` would be neither resumed nor replaced."""
        check_store(self.path, self.recipe, overwrite=self.overwrite)

    def open_writer(self) -> StoreWriter:
        """Return a writer of the store; entering it resumes, and one at a time may hold the store."""
        return StoreWriter(self.path, self.recipe, self.provenance, overwrite=self.overwrite)

    def part_writer(self) -> PartWriter:
        """Return a writer of parts, of which there may be several at a time, in several processes."""
        return PartWriter(self.path, self.recipe, self.provenance)

"""The folder of part files, `STORE.parts`, and what does not belong into it."""

import glob
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mertool.errors import MertoolError
from mertool.features import Recipe
from mertool.files import explain_write_errors, make_folder
from mertool.store.hdf5 import find_damage, first_line, is_sealed, open_hdf5
from mertool.store.layout import parts_folder
from mertool.store.reader import read_header
from mertool.store.structure import check_structure

LOCK = "lock"
PART_PATTERN = "part-*.h5"
logger = logging.getLogger(__name__)


def remove_temporary_files(store: Path) -> None:
    """Remove what a killed run left half written. The lock must be held, so that no other process is writing it."""
    merges = store.parent.glob(f".{glob.escape(store.name)}.tmp-*")
    for file in [*parts_folder(store).glob(".part-*.tmp-*"), *merges]:
        if file.is_file():
            file.unlink(missing_ok=True)


def read_part_recipe(store: Path) -> Recipe | None:
    """Return the recipe of the first valid part file of an unfinished store; None if there is none."""
    for part_file in sorted(parts_folder(store).glob(PART_PATTERN)):
        if _find_fault(part_file) is None:
            with open_hdf5(part_file) as file:
                return read_header(file)[0]
    return None


def set_aside_foreign_files(store: Path) -> None:
    """Move files that are no parts, and damaged parts, from the folder of part files to `STORE.set-aside`.

    A warning names the first of them: nothing of somebody else's is removed, and it cannot end an extraction.
    """
    reasons = dict(_foreign_files(store))
    if not reasons:
        return
    folder = store.with_name(f"{store.name}.set-aside")
    make_folder(folder)
    for file in reasons:
        with explain_write_errors(file):
            file.rename(_free_path(folder / file.name))
    first, reason = next(iter(reasons.items()))
    count = "1 file that is no part" if len(reasons) == 1 else f"{len(reasons)} files that are no parts"
    logger.warning(f"{count} of {store} set aside in {folder} ({first.name}: {reason})")


def _foreign_files(store: Path) -> Iterator[tuple[Path, str]]:
    """Yield the entries of the folder that cannot be merged, and why."""
    for entry in sorted(parts_folder(store).iterdir()):
        if entry.name == LOCK or entry.match(".part-*.tmp-*"):
            continue
        reason = _find_fault(entry) if entry.match(PART_PATTERN) else "not a part file"
        if reason:
            yield entry, reason


def _find_fault(part_file: Path) -> str | None:
    """Return why a part file cannot be merged; None for a valid one of any recipe."""
    if part_file.is_symlink() or not part_file.is_file():
        return "not a regular file"
    damage = find_damage(part_file)
    if damage and is_sealed(part_file):
        return damage
    try:
        with open_hdf5(part_file) as file:
            recipe, _ = read_header(file)
            check_structure(file, recipe, is_part=True)
    except (MertoolError, OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        return first_line(error)
    return damage


def _free_path(path: Path) -> Path:
    """Return `path`, with a number behind the name if there is something already."""
    candidates = [path, *(path.with_name(f"{path.name}.{number}") for number in range(2, 10_000))]
    return next(candidate for candidate in candidates if not os.path.lexists(candidate))

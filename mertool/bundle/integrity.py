"""The files of a bundle: exactly those that its seal names, regular, inside its folder, and of kinds that hold no code.

A bundle comes from others. So a file that the seal does not name is refused as well as one that was changed: a library
that loads a model looks for files of many names.
"""

import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mertool.bundle.layout import encoder_folder, file_digest
from mertool.encoders.checkpoints import CONFIGURATION
from mertool.untrusted import is_plain_name

RECORD = "run.json"
# What people look at and predict never reads: tables and plots at the top of a run.
REPORT_SUFFIXES = (".json", ".csv", ".png", ".svg")
ENCODER_SUFFIXES = (".safetensors", *(PurePosixPath(pattern).suffix for pattern in CONFIGURATION))
TRAINED_SUFFIXES = (".safetensors", ".json")
MAX_FILES = 10_000
MAX_BYTES = 64 << 30  # of all files; more would take minutes to digest
MEMBERS = re.compile(r"members-\d+\.safetensors")
TRAINED = re.compile(r"part\d+/(adapters/[^/]+|aligner)")
ENCODER = re.compile(r"encoders/[^/]+")


def find_file_faults(folder: Path, files: Any, encoder_digests: Collection[str]) -> list[str]:
    """Return the faults of a bundle's files, for people: missing, changed, of another kind, or not named by the seal.

    files: SHA-256 by path within the bundle, as run.json has them. encoder_digests: encoders that may lie in the
    bundle without being sealed, because somebody put them there; their own digest is checked when they are loaded.
    """
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        return ["run.json has no digests of files"]
    if wrong := [name for name in files if not _is_valid_path(name)]:
        return [f"run.json names the file {wrong[0][:80]!r}, which no bundle has"]
    added_folders = {encoder_folder(digest) for digest in encoder_digests} - {
        str(PurePosixPath(name).parent) for name in files
    }
    faults, present = [], set()
    for name, fault in _entries(folder):
        present.add(name)
        parent = str(PurePosixPath(name).parent)
        if fault:
            faults.append(f"{name} is {fault}")
        elif name in files:
            faults += _changes(folder, name, files[name])
        elif name != RECORD and not (parent in added_folders and _is_valid_path(name)):
            faults.append(f"{name} is not a file of the bundle: remove it")
    return faults + [f"{name} is missing" for name in files if name not in present]


def _changes(folder: Path, name: str, digest: str) -> list[str]:
    try:
        return [] if file_digest(folder / name) == digest else [f"{name} was changed"]
    except OSError as error:
        return [f"{name} cannot be read ({error.strerror})"]


def _entries(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Yield every file below a folder, relative to it, and what it is if it is no regular file. No link is followed."""
    count, size = 0, 0
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root, name)
            status = path.lstat()
            mode = status.st_mode
            if stat.S_ISDIR(mode):
                continue
            count, size = count + 1, size + status.st_size
            if count > MAX_FILES or size > MAX_BYTES:
                yield (
                    path.relative_to(folder).as_posix(),
                    f"one of more than {MAX_FILES:,} files or {MAX_BYTES:,} bytes",
                )
                return
            kind = None if stat.S_ISREG(mode) else "a link" if stat.S_ISLNK(mode) else "no regular file"
            yield path.relative_to(folder).as_posix(), kind


def _is_valid_path(name: str) -> bool:
    """Return True for a path that `write` may have put into a bundle."""
    path = PurePosixPath(name)
    # PurePosixPath drops `./` and doubled slashes, so two spellings would name one file.
    if str(path) != name or not all(map(is_plain_name, path.parts)):
        return False
    parent = str(path.parent)
    if parent == ".":
        return bool(MEMBERS.fullmatch(name)) or (name != RECORD and path.suffix in REPORT_SUFFIXES)
    if TRAINED.fullmatch(parent):
        return path.suffix in TRAINED_SUFFIXES
    return bool(ENCODER.fullmatch(parent)) and path.suffix in ENCODER_SUFFIXES

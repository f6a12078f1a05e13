"""Writing files so that a reader never sees half of one, and digests that name what is in them."""

import errno
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from mertool.errors import MertoolError


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing right or a folder in the way into one line that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # HDF5 hides the number in its message, and reports a failing close as a RuntimeError.
        full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        if isinstance(error, RuntimeError) and "errno" not in str(error):
            raise
        number = getattr(error, "errno", None)
        if number in (errno.EMFILE, errno.ENFILE):
            raise  # another output path would not help
        if number in full or any(f"errno = {code}," in str(error) for code in full):
            raise MertoolError(
                f"the disk is full: cannot write {path}. Finished parts of an extraction are kept: free some "
                "space and run the same command again"
            ) from error
        raise MertoolError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}. Choose another output path"
        ) from error


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents."""
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write to a temporary name, flush to the disk, rename: the old file stays until the new one is whole."""
    with atomic_open(path) as file, explain_write_errors(path):
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name that takes the place of `path` at the end; an error leaves the old one there."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with explain_write_errors(path):
        file = open(temporary, "wb")  # noqa: SIM115  closed below, on both ways
    try:
        yield file
        with explain_write_errors(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(temporary, path)
            fsync(path.parent)
    except BaseException:
        with suppress(OSError):
            file.close()
        temporary.unlink(missing_ok=True)
        raise


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(path: Path, *inputs: Path | None) -> None:
    """Raise MertoolError now, before the long work, if a file at `path` could not be written later.

    It must not be one of `inputs` either, whatever its name: a link to it, or a name in other letters. Nor may it lie
    inside an input that is a run, whose files belong together. Nothing is created.
    """
    if path.is_dir():
        raise MertoolError(f"cannot write {path}: it is a folder. Give the path of a file")
    if path.exists() and not path.is_file():  # /dev/null would be replaced by a file
        raise MertoolError(f"cannot write {path}: it is not a regular file. Give the path of a file")
    _check_no_input(path, [source for source in inputs if source])
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise MertoolError(f"cannot write {path}: {folder} is a file, not a folder. Choose another output path")
    write_probe = folder / f".{path.name}.probe-{os.getpid()}"
    with explain_write_errors(path):
        write_probe.touch()
        write_probe.unlink()


def check_replaceable(folder: Path, *inputs: Path | None) -> None:
    """Raise MertoolError if one of `inputs` is `folder` or lies in it: a new run replaces the whole folder."""
    replaced = _comparable(folder)
    for source in inputs:
        if source and replaced in (own := _comparable(source), *own.parents):
            raise MertoolError(
                f"cannot write {folder}: {source} is an input of this command, and a new run replaces the whole "
                "folder. Choose another -o"
            )


def _check_no_input(path: Path, inputs: list[Path]) -> None:
    """Raise MertoolError if `path` is one of the inputs, or lies in a run that is one."""
    own, real_path = _identity(path), _comparable(path)
    for source in inputs:
        # There may be very many inputs: an output that does not exist yet can only be one by a name in other letters.
        is_same_file = own is not None and own == _identity(source)
        if is_same_file or (source.name.casefold() == path.name.casefold() and _comparable(source) == real_path):
            raise MertoolError(f"cannot write {path}: it is an input of this command. Choose another output path")
    for folder in (*path.absolute().parents, *path.resolve().parents):
        if (folder / "run.json").is_file() and _identity(folder) in map(_identity, inputs):
            raise MertoolError(
                f"cannot write {path}: it is in {folder}, a run that this command reads. Choose another output path"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and the inode of a file, the same for all its names; None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _comparable(path: Path) -> Path:
    """Return a path that is equal for names that some file system takes for one: links, capitals, composed letters."""
    return Path(unicodedata.normalize("NFC", os.path.realpath(path)).casefold())


def canonical_json(value: Any) -> str:
    """JSON with one spelling per value, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def content_digest(paths: list[Path]) -> str:
    """SHA-256 over names and whole contents of several files; read once as long as they do not change."""
    if irregular := [path for path in paths if not path.is_file()]:
        # Opening a pipe would wait for a writer that never comes.
        raise MertoolError(f"{irregular[0]} is missing or not a regular file: copy it anew, or make it again")
    ordered = sorted(paths, key=lambda p: p.name)
    return _content_digest(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in ordered))


@cache
def _content_digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(path.name.encode() + b"\0")
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()

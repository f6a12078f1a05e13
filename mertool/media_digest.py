"""Digests of media files, which tell whether features of a clip are still those of its file.

The digest of a clip is of the whole content of its file, so that an edit anywhere in it is noticed. Beside it a store
keeps the size of the file and its times of change: while these are the same, the file is not read again.
"""

import errno
import hashlib
import stat
import time
from functools import lru_cache
from pathlib import Path

DIGEST_BYTES = 16
SETTLED_NANOSECONDS = 2_000_000_000
MAX_REMEMBERED = 1 << 18  # digests; babble noise and files of many clips are asked for again and again


def media_digest(path: Path) -> str:
    """Return the BLAKE2b of a whole file, in hexadecimal; read once as long as the file does not change.

    Raises OSError if it is no regular file, or cannot be read.
    """
    stamp = file_stamp(path)
    return _remembered_digest(path.absolute(), stamp) if stamp else _content_digest(path)


def file_stamp(path: Path) -> str:
    """Return size and times of change of a file, in nanoseconds; raises OSError if it is no regular file.

    The time at which the inode changed is part of it, because programs can set the time of modification at will. Empty
    for a file that changed just now: clocks of file systems are coarse, so a second change might have the same time.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer that never comes
        raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
    if time.time_ns() - status.st_ctime_ns < SETTLED_NANOSECONDS:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def clip_digest(path: Path, start: float | None, end: float | None) -> str:
    """Return the digest of a clip from `start` to `end` seconds of a file: of the file, and of the section."""
    return media_digest(path) + _section(start, end)


def clip_signature(path: Path, start: float | None, end: float | None) -> str:
    """Return what a store keeps of a clip's media: its digest, and the stamp of the file."""
    # The stamp comes first: a file that changes meanwhile has another one when it is looked at again.
    stamp = file_stamp(path)
    return f"{clip_digest(path, start, end)} {stamp}"


def digest_of_signature(signature: str) -> str:
    """Return the digest in a signature: that of the content, which is the same for every copy of the file."""
    return signature.partition(" ")[0]


def has_signature(signature: str, path: Path, *, start: float | None, end: float | None) -> bool:
    """Return True if a clip's media are those of `signature`; the file is read only if its stamp is another one."""
    digest, _, stamp = signature.partition(" ")
    section = _section(start, end)
    try:
        if stamp and stamp == file_stamp(path):
            return digest.partition("@")[2] == section.removeprefix("@")
        return digest == media_digest(path) + section
    except OSError:
        return False


def _section(start: float | None, end: float | None) -> str:
    return "" if start is None and end is None else f"@{start}-{end}"


@lru_cache(MAX_REMEMBERED)
def _remembered_digest(path: Path, stamp: str) -> str:
    return _content_digest(path)


def _content_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()

"""HDF5 files with a seal: how they are opened, and the digest in front of the content by which damage is found.

HDF5 leaves the first bytes of a file, its user block, to the program. It holds the SHA-256 of everything behind it. So
`store check` finds a flipped byte anywhere in a file, without chunks and their filters, and contiguous values are read
as fast as the disk allows. `head -2 store.h5` shows the digest.
"""

import hashlib
import io
from pathlib import Path
from typing import BinaryIO

import h5py

from mertool.errors import MertoolError

USER_BLOCK = 512  # bytes, the smallest size that HDF5 allows
BLOCK_BYTES = 4 << 20
MAGIC = b"mertool feature store\n"


def open_hdf5(path: Path) -> h5py.File:
    """Open a regular HDF5 file for reading, without a lock of the file system; raises MertoolError for any other file.

    Finished stores and parts never change, and file systems of networks often have no locks.
    """
    if not path.is_file():  # opening a pipe would wait for a writer that never comes
        raise MertoolError(f"{path} is {'not a regular file' if path.exists() else 'missing'}")
    try:
        return h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError, MemoryError) as error:
        raise MertoolError(f"{path} is not a readable HDF5 file ({first_line(error)})") from error


def create_hdf5(file: Path | io.BytesIO) -> h5py.File:
    """Create an HDF5 file, or replace the content of one; `seal` completes it after it was closed."""
    return h5py.File(file, "w", userblock_size=USER_BLOCK)


def seal(file: BinaryIO) -> None:
    """Write the digest of a file that `create_hdf5` created into its user block."""
    digest = _content_digest(file)
    file.seek(0)
    file.write(_user_block(digest))


def is_sealed(path: Path) -> bool:
    """Return True if a file begins like one that `seal` completed."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def find_damage(path: Path) -> str | None:
    """Return a sentence if a file is not as it was written, else None; it reads the whole file, but not as HDF5."""
    try:
        with open(path, "rb") as file:
            written = file.read(USER_BLOCK)
            if written == _user_block(_content_digest(file)):
                return None
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"
    if written.startswith(MAGIC):
        return "the bytes of the file do not match their digest: it was damaged or changed"
    return "the file has no digest of its bytes: mertool did not write it"


def first_line(error: BaseException) -> str:
    """Return the first line of an error of HDF5: the others are a stack of C functions."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _content_digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(USER_BLOCK)
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _user_block(digest: str) -> bytes:
    return (MAGIC + f"sha256 of all bytes from {USER_BLOCK} on: {digest}\n".encode()).ljust(USER_BLOCK, b"\0")

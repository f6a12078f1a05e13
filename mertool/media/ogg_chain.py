"""Chained Ogg files: streams that follow each other in one file, as internet radio and joined recordings have them.

FFmpeg reads on only where the next stream is like the one before. So each link is read as a file of its own.
"""

import io
import os
from pathlib import Path

PAGE_HEADER_BYTES = 27
BEGINS_STREAM = 2  # flag of a page, RFC 3533


def chain_links(path: Path) -> list[range]:
    """Return the bytes of each link of an Ogg file; one range of the whole file if it is no chain, or no Ogg file."""
    size = path.stat().st_size
    starts, position, in_headers = [0], 0, True
    with open(path, "rb") as file:
        while len(page := file.read(PAGE_HEADER_BYTES)) == PAGE_HEADER_BYTES and page.startswith(b"OggS"):
            begins = bool(page[5] & BEGINS_STREAM)
            # The first pages of streams that run side by side lie together.
            if begins and not in_headers:
                starts.append(position)
            in_headers = begins
            segments = file.read(page[26])
            position += PAGE_HEADER_BYTES + len(segments) + sum(segments)
            file.seek(position)
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], size], strict=True)]


class FileSlice(io.RawIOBase):
    """A part of a file, read as if it were a file of its own."""

    def __init__(self, path: Path, span: range):
        self.span = span
        self._file = open(path, "rb")  # noqa: SIM115, it is closed by `close`
        self._file.seek(span.start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.span.stop - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: self.span.start, os.SEEK_CUR: self._file.tell(), os.SEEK_END: self.span.stop}[whence]
        return self._file.seek(max(self.span.start, origin + offset)) - self.span.start

    def tell(self) -> int:
        return self._file.tell() - self.span.start

    def close(self) -> None:
        self._file.close()
        super().close()

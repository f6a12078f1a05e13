"""The number of samples that an MP4 or QuickTime file states, checked before FFmpeg takes memory for each of them.

A table of a few bytes can state four billion samples (pictures, or frames of audio). Every sample has at least one
byte, so a file that states more samples than it has bytes is damaged, or made to exhaust the memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mertool.errors import ClipError

# ISO/IEC 14496-12: boxes that hold other boxes, down to those that state a number of samples, which stands behind so
# many bytes of the box's content.
PARENT_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")
OFFSET_OF_COUNT = {b"stsz": 8, b"stz2": 8, b"trun": 4}
FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot", b"sidx", b"uuid")
# Some valid files have samples of no bytes, such as pauses between subtitles.
MAX_EMPTY_SAMPLES = 100_000


def check_sample_tables(path: Path) -> None:
    """Raise ClipError too_large if an MP4 or QuickTime file states more samples than it has bytes."""
    with open(path, "rb") as file:
        if file.read(8)[4:] not in FIRST_BOXES:
            return
        n_bytes = file.seek(0, 2)
        n_samples = 0
        for count in _sample_counts(file, 0, n_bytes):
            n_samples += count
            if n_samples > n_bytes + MAX_EMPTY_SAMPLES:
                raise ClipError("too_large", f"the file states {n_samples:,} samples, but has {n_bytes:,} bytes")


def _sample_counts(file: BinaryIO, start: int, end: int) -> Iterator[int]:
    """Yield the number of samples in each table between two offsets of a file."""
    while start + 8 <= end:
        file.seek(start)
        header = file.read(16)
        size, kind, content = int.from_bytes(header[:4], "big"), header[4:8], start + 8
        if size == 1:  # a size of 64 bits follows the kind
            size, content = int.from_bytes(header[8:16], "big"), start + 16
        box_end = min(end, start + size) if size else end
        if box_end < content:
            return
        if kind in PARENT_BOXES:
            yield from _sample_counts(file, content, box_end)
        elif kind in OFFSET_OF_COUNT:
            file.seek(content + OFFSET_OF_COUNT[kind])
            yield int.from_bytes(file.read(4), "big")
        start = box_end

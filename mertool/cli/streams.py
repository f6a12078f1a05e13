"""Standard output and standard error that never end a command.

A terminal may not show every character, a pipe may be closed by its reader (`| head -1`) and a disk may be full. The
work and its exit code do not depend on any of these.
"""

import errno
import os
import sys
from typing import Any, TextIO


class TolerantStream:
    """A text stream that stops writing when it cannot; everything else is the stream's own.

    Characters that the encoding lacks are written as `\\u6d4b`. An error other than a closed pipe is told once, on
    `warnings`.
    """

    def __init__(self, stream: TextIO, warnings: "TolerantStream | None" = None):
        self._stream, self._warnings = stream, warnings
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write as the stream does, or drop the text."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flush as the stream does."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def writelines(self, lines: Any) -> None:
        """Write lines as the stream does."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        """Let everything that follows go nowhere, what is still in the stream's buffer included."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
        if error.errno != errno.EPIPE and self._warnings:
            self._warnings.write(f"warning: cannot write to standard output ({error.strerror}); the command goes on\n")


def install_tolerant_streams() -> None:
    """Make standard output and standard error tolerant.

    Closed ones are opened to nowhere: otherwise the next file that is opened would take their number, and what
    libraries print would be written into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stderr = stderr = TolerantStream(sys.stderr or _open_nowhere())
    sys.stdout = TolerantStream(sys.stdout or _open_nowhere(), stderr)


def _open_nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")

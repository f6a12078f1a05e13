"""How a media file is opened, and the checks that audio and video share."""

from pathlib import Path

import av

from mertool.errors import ClipError

av.logging.set_level(av.logging.PANIC)


def check_file(path: Path) -> None:
    """Raise ClipError missing_file if the path does not exist or is not a regular file."""
    if not path.is_file():
        raise ClipError("missing_file", f"{path} {'is not a file' if path.exists() else 'does not exist'}")


def open_container(path: Path) -> "av.container.InputContainer":
    """Open a media file with PyAV."""
    # Titles and comments may be in any encoding; one that cannot be decoded must not make the clip unreadable.
    return av.open(str(path), metadata_errors="replace")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

"""The two kinds of expected trouble: an error of the user's, and a clip that cannot be used."""

from collections.abc import Iterable
from difflib import get_close_matches

# Why a clip has no features. The first four are a normal state of a clip (the modality is simply not
# there); the others are failures and count against `--max-failed`.
REASONS = {
    "no_audio": "the file has no audio stream",
    "no_video": "the file has no video stream",
    "no_face": "no face was found in any sampled frame",
    "no_text": "the transcript is empty",
    "missing_file": "the file does not exist",
    "unreadable": "the container or a stream cannot be decoded",
    "too_short": "less media than the encoder needs for one frame",
    "timeout": "decoding took longer than --clip-timeout",
    "crashed": "the decoder process died on this file",
    "out_of_memory": "the device has not enough memory for this clip alone",
    "not_finite": "the encoder gave NaN or infinity",
}
MISSING_MODALITY_REASONS = frozenset({"no_audio", "no_video", "no_face", "no_text"})
# Reasons that another try may cure although the file is the same.
TRANSIENT_REASONS = frozenset({"missing_file", "timeout", "crashed", "out_of_memory"})


class MertoolError(Exception):
    """An error of the user's: one line that says what was given, what is valid and what to do next."""


class ClipError(Exception):
    """A clip that cannot be used; it is recorded and the run goes on.

    `reason` is one of REASONS, `message` says what was seen in this file.
    """

    def __init__(self, reason: str, message: str = ""):
        if reason not in REASONS:
            raise ValueError(f"undocumented reason code {reason!r}")
        super().__init__(reason, message)
        self.reason = reason
        self.message = message or REASONS[reason]


def suggest(given: str, valid: Iterable[str]) -> str:
    """`did you mean 'x'? ` or an empty string."""
    close = get_close_matches(given.lower(), list(valid), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'? " if close else ""


def check_choice(what: str, given: str, valid: Iterable[str]) -> str:
    """Return `given` if it is one of `valid`; otherwise raise an error that lists what is."""
    names = list(valid)
    if given in names:
        return given
    raise MertoolError(f"unknown {what} '{given}': {suggest(given, names)}valid: {', '.join(names)}")


def combine_errors(where: str, faults: list[str], most: int = 20) -> MertoolError:
    """One error for all faults found in one place."""
    more = f"; and {len(faults) - most} more" if len(faults) > most else ""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return MertoolError(f"{where}: {count}: {'; '.join(faults[:most])}{more}")

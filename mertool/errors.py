"""The two expected kinds of failure, an error of the user's and a clip that cannot be used, and warnings."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, kw_only=True)
class FailureReason:
    """One reason why a clip has no features; all that mertool knows of the reason stands in its row.

    code: the name in stores, tables and JSON. message: the text for a clip without details of its own.
    stage: `decode` (reading the media file) or `encode` (running the encoder).
    missing_modality: the clip simply lacks this modality; it does not count against `--max-failed`.
    transient: another attempt may succeed although the file is unchanged, so the next run tries again.
    """

    code: str
    message: str
    stage: str = "decode"
    missing_modality: bool = False
    transient: bool = False


_ROWS = (
    FailureReason(code="no_audio", message="the file has no audio stream", missing_modality=True),
    FailureReason(code="no_video", message="the file has no video stream", missing_modality=True),
    FailureReason(code="no_face", message="no face was found in any sampled frame", missing_modality=True),
    FailureReason(code="no_text", message="the transcript is empty, or nobody speaks", missing_modality=True),
    FailureReason(code="silent", message="the audio is digital silence", missing_modality=True),
    FailureReason(code="missing_file", message="the file does not exist", transient=True),
    FailureReason(code="unreadable", message="the container or a stream cannot be decoded"),
    FailureReason(code="unsupported", message="a playlist, or a file that is no container of audio or video"),
    FailureReason(code="too_large", message="the picture, the audio or the duration is beyond the limits"),
    FailureReason(code="too_short", message="less media than the encoder needs for one frame"),
    FailureReason(code="timeout", message="decoding took longer than --clip-timeout", transient=True),
    FailureReason(code="crashed", message="the decoder process died on this file", transient=True),
    FailureReason(
        code="out_of_memory",
        message="the device has not enough memory for this clip, even in a batch of its own",
        stage="encode",
        transient=True,
    ),
    FailureReason(
        code="not_finite", message="the audio, or what the encoder made of it, holds NaN or infinity", stage="encode"
    ),
)
REASONS = {row.code: row for row in _ROWS}
MISSING_MODALITY_REASONS = frozenset(row.code for row in _ROWS if row.missing_modality)
TRANSIENT_REASONS = frozenset(row.code for row in _ROWS if row.transient)


class MertoolError(Exception):
    """An error of the user's: one line that says what was given, what is valid and what to do next."""


class MertoolWarning(UserWarning):
    """Something about the user's data that does not stop the work: one line, as of MertoolError."""


class ClipError(Exception):
    """A clip that cannot be used; it is recorded, and the run continues with the other clips.

    reason: a code of REASONS. message: details of this file; the reason's own message if empty.
    """

    def __init__(self, reason: str, message: str = ""):
        if reason not in REASONS:
            raise ValueError(f"undocumented reason code {reason!r}")
        super().__init__(reason, message)
        self.reason = reason
        self.message = message or REASONS[reason].message


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return `did you mean 'x'? ` for the valid name closest to `name`, or an empty string."""
    close = get_close_matches(name.lower(), list(valid), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'? " if close else ""


def count_of(number: float, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one.

    >>> count_of(1, "clip"), count_of(0, "labelled clip")
    ('1 clip', '0 labelled clips')
    """
    return f"{number:.0f} {noun}{'' if number == 1 else 's'}"


def check_choice(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return `name` if it is one of `valid`; otherwise raise an error that lists the valid names.

    >>> check_choice("pooling", "mean", ["mean", "none"])
    'mean'
    """
    choices = list(valid)
    if name in choices:
        return name
    raise MertoolError(f"unknown {kind} '{name}': {suggest(name, choices)}valid: {', '.join(choices)}")


def combine_errors(where: str, faults: list[str], max_listed: int = 20) -> MertoolError:
    """Return one error that lists the faults of one input, at most `max_listed` of them."""
    more = f"; and {len(faults) - max_listed} more" if len(faults) > max_listed else ""
    return MertoolError(f"{where}: {count_of(len(faults), 'fault')}: {'; '.join(faults[:max_listed])}{more}")

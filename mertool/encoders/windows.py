"""The window of encoders that were trained on audio of one length, and the media settings of a recipe that name it."""

from typing import Any

from mertool.encoders.checkpoints import CheckpointRef
from mertool.errors import MertoolError
from mertool.features import SAMPLE_RATE

FOLLOWS_CLIP = "clip"
DEFAULT_WINDOW = FOLLOWS_CLIP
# Training reads every frame of the window in each step, so windows of 30 s would take many times as long.
ADAPTATION_WINDOW = FOLLOWS_CLIP
# Chunks of 10 s, the last one filled up with zeros, as the scripts of MERTools cut waveforms.
MERTOOLS_WINDOW = "mertools"
MERTOOLS_SECONDS = 10


def adaptation_window(checkpoint: CheckpointRef) -> str | None:
    """Return the window on which adapters of an encoder are trained; None for an encoder without a choice."""
    return ADAPTATION_WINDOW if checkpoint.family("audio").windows else None


def audio_settings(checkpoint: CheckpointRef, window: str | None = None) -> dict[str, Any]:
    """Return the media settings of a recipe of audio features; `window` None is the default.

    Raises MertoolError if `window` is given for an encoder that has no choice of windows.
    """
    valid = checkpoint.family("audio").windows
    if window is not None and window not in valid:
        kind = checkpoint.config().get("model_type")
        raise MertoolError(
            f"--whisper-window {window}: encoder '{checkpoint.name}' ({kind}) takes clips of any length as they are: "
            "leave it out"
        )
    return {"sample_rate": SAMPLE_RATE, **({"window": window or DEFAULT_WINDOW} if valid else {})}


def mertools_audio_settings(checkpoint: CheckpointRef) -> dict[str, Any]:
    """Return the media settings of audio features as MERTools makes them.

    Raises MertoolError for a Whisper, of which MERTools takes the decoder.
    """
    if checkpoint.family("audio").windows:
        kind = checkpoint.config().get("model_type")
        raise MertoolError(
            f"--as-mertools: of '{checkpoint.name}' ({kind}) MERTools takes the decoder, which mertool does not run: "
            "leave it out, or give an encoder of waveforms, such as hubert-large-zh"
        )
    return {"sample_rate": SAMPLE_RATE, "window": MERTOOLS_WINDOW}

"""The window of encoders that were trained on audio of one length, and the media settings of a recipe that name it."""

from typing import Any

from mertool.encoders.checkpoints import CheckpointRef
from mertool.errors import MertoolError
from mertool.features import SAMPLE_RATE

FOLLOWS_CLIP = "clip"
DEFAULT_WINDOW = FOLLOWS_CLIP
# Training reads every frame of the window in each step, so windows of 30 s would take many times as long.
ADAPTATION_WINDOW = FOLLOWS_CLIP


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

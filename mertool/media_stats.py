"""`MediaStats`: what was found out about the media of a clip while it was decoded."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class MediaStats:
    """Facts of the media of one clip; they are stored beside its features.

    seconds: duration of the decoded media, NaN for a transcript.
    frames_seen: number of video frames that were looked at; `face_share` is the share of them that show the face.
    sample_rate: Hz of the audio as it is in the file, 0 without audio; `channels` is the number of its channels.
    audio_tracks: number of audio tracks in the file; `audio_track` is the one that was read, counted from 1.
    note: what was lost or disregarded, in words for people; empty for intact media.
    """

    seconds: float = float("nan")
    frames_seen: int = 0
    face_share: float = float("nan")
    sample_rate: int = 0
    channels: int = 0
    audio_tracks: int = 0
    audio_track: int = 0
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the facts by name; fields that a subclass adds are not among them."""
        return {field.name: getattr(self, field.name) for field in fields(MediaStats)}

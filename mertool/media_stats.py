"""`MediaStats`: what was found out about the media of a clip while it was decoded."""

from dataclasses import dataclass, fields
from math import isnan
from typing import Any

from mertool.errors import count_of


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

    def to_json(self) -> dict[str, Any]:
        """Return the facts by name, with None for NaN, which JSON lacks."""
        return {
            name: None if isinstance(value, float) and isnan(value) else value for name, value in self.to_dict().items()
        }

    def describe(self) -> str:
        """Return the known facts in words.

        >>> MediaStats(seconds=4, sample_rate=48000, channels=2, audio_tracks=2, audio_track=2).describe()
        '4.0 s, 48000 Hz, 2 channels, audio track 2 of 2'
        """
        facts = []
        if not isnan(self.seconds):
            facts.append(f"{self.seconds:.1f} s")
        if self.sample_rate:
            channels = count_of(self.channels, "channel")
            facts += [f"{self.sample_rate} Hz", channels, f"audio track {self.audio_track} of {self.audio_tracks}"]
        if self.frames_seen:
            facts.append(f"{self.frames_seen} frames")
        if not isnan(self.face_share):
            facts.append(f"a face in {self.face_share:.0%} of them")
        return "; ".join(filter(None, [", ".join(facts), self.note]))

"""Audio samples and video frames of media files."""

from mertool.media.audio import load_audio, read_audio
from mertool.media.video import read_frames

__all__ = ["load_audio", "read_audio", "read_frames"]

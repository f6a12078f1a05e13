"""Audio samples and video frames of media files."""

from mertool.media.audio import load_audio, read_audio
from mertool.media.video import frame_table, read_frames, sample_frames

__all__ = ["frame_table", "load_audio", "read_audio", "read_frames", "sample_frames"]

"""`VideoStream`: the packets and the decoded frames of the video stream of one file, with their times."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from mertool.errors import ClipError
from mertool.media.container import (
    MAX_PIXELS,
    container_start,
    default_stream,
    first_line,
    is_cover_image,
    open_container,
)
from mertool.media.display import check_size

DEFAULT_RATE = Fraction(25)  # frames per second of a stream that states no rate


class KeyframeWithoutPicture(Exception):
    """A packet that the container calls a keyframe did not give the picture of its time."""


class TimedFrame(NamedTuple):
    """A decoded frame, the second at which it appears, and the width of its pixels divided by their height."""

    seconds: float
    frame: "av.VideoFrame"
    pixel_aspect: Fraction


class VideoStream:
    """The main video stream of a file. Use as a context manager, which opens the file.

    Times are seconds on the clock that a player shows, whose zero is the beginning of the file's earliest stream.
    What can be read of a damaged file is read; `errors` are the messages of what cannot. Raises ClipError:
    missing_file, unsupported, no_video, unreadable, too_large.
    """

    def __init__(self, path: Path):
        self.path = path
        self.errors: list[str] = []

    def __enter__(self) -> "VideoStream":
        self._container = open_container(self.path)
        try:
            self._open_stream()
        except BaseException:
            self._container.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _open_stream(self) -> None:
        self._stream = main_video_stream(self._container)
        self._codec = self._stream.codec_context
        if self._codec is None:
            raise ClipError("unreadable", "FFmpeg has no decoder for the codec of the video stream")
        check_size(self._codec.width, self._codec.height)
        self._codec.thread_type = "NONE"  # the decoder processes already use all cores
        # FFmpeg checks this before it takes memory for a picture, also where the size changes within the stream.
        self._codec.options = {"max_pixels": str(MAX_PIXELS)}
        self._start = container_start(self._container)
        self.rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or DEFAULT_RATE)
        self.time_base = Fraction(self._stream.time_base or 1 / self.rate)
        self._stated_aspect = self._stream.sample_aspect_ratio
        self._first_coded_aspect = self._codec.sample_aspect_ratio
        # Timestamp of the newest picture, and its duration; None before the first one, and after packets were skipped.
        self._previous: int | None = None
        self._duration = 0

    def seconds(self, timestamp: int) -> float:
        """Return the second on the player's clock of a timestamp of the stream."""
        return float(timestamp * self.time_base) - self._start

    def packets(self) -> Iterator[Any]:
        """Yield the packets in the order of decoding; the last one is empty and flushes the decoder."""
        try:
            yield from self._container.demux(self._stream)
        except av.error.FFmpegError as error:  # the file cannot be read on from here
            self.errors.append(first_line(error))

    def frames(self, keyframe_needed: Callable[[], float]) -> Iterator[TimedFrame]:
        """Yield the frames in the order of presentation.

        `keyframe_needed` is asked before each packet for the second of a keyframe: where it was not reached yet, the
        packets up to it are skipped without decoding. -inf skips none. Raises KeyframeWithoutPicture.
        """
        reached = awaited = -np.inf
        skipped = False
        for packet in self.packets():
            keyframe = self.seconds(packet.pts) if packet.is_keyframe and packet.pts is not None else -np.inf
            needed = keyframe_needed()
            if needed > reached and keyframe != needed:
                skipped = True
                continue
            if skipped:
                self._codec.flush_buffers()
                self._previous = None
                awaited, skipped = needed, False
            reached = max(reached, keyframe)
            for timed in self.decode(packet):
                if timed.seconds < awaited:
                    continue  # it leads the keyframe and refers to pictures that were skipped
                if timed.seconds > awaited > -np.inf:
                    raise KeyframeWithoutPicture
                awaited = -np.inf
                yield timed
        if skipped or awaited > -np.inf:
            raise KeyframeWithoutPicture

    def decode(self, packet: Any) -> list[TimedFrame]:
        """Decode a packet; one that cannot be decoded holds no frame. Raises ClipError too_large."""
        try:
            with clip_errors():
                frames = packet.decode()
        except ClipError as error:
            if error.reason != "unreadable":
                raise
            self.errors.append(error.message)
            return []
        return [self._with_time(frame) for frame in frames]

    def _with_time(self, frame: "av.VideoFrame") -> TimedFrame:
        timestamp = frame.pts if frame.pts is not None else frame.dts
        if timestamp is None or (self._previous is not None and timestamp <= self._previous):
            # Streams without a container have no timestamps, and MPEG program streams repeat some: such a frame
            # follows the one before it.
            timestamp = 0 if self._previous is None else self._previous + self._duration
        self._previous, self._duration = timestamp, frame.duration or round(1 / self.rate / self.time_base)
        return TimedFrame(self.seconds(timestamp), frame, self._pixel_aspect())

    def _pixel_aspect(self) -> Fraction:
        """Return the pixel aspect that the container states, unless the one in the stream changed (as television)."""
        coded = self._codec.sample_aspect_ratio
        aspect = self._stated_aspect if coded == self._first_coded_aspect else coded
        return Fraction(aspect) if aspect and aspect > 0 else Fraction(1)


def main_video_stream(container: "av.container.InputContainer") -> "av.video.stream.VideoStream":
    """Return the default video stream, or the first one; cover images of music files are none. Raises no_video."""
    streams = [stream for stream in container.streams.video if not is_cover_image(stream)]
    if not streams:
        raise ClipError("no_video")
    return default_stream(streams)


@contextmanager
def clip_errors() -> Iterator[None]:
    """Raise errors of FFmpeg as ClipError: too_large for pictures beyond MAX_PIXELS, else unreadable."""
    try:
        yield
    except (av.error.FFmpegError, ValueError) as error:
        # FFmpeg has no error code of its own for a picture beyond `max_pixels`; its log tells the size.
        for width, height in re.findall(r"(\d+)x(\d+)", str(getattr(error, "log", ""))):
            check_size(int(width), int(height))
        raise ClipError("unreadable", first_line(error)) from error

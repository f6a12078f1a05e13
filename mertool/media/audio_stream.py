"""The audio stream of a container: which one is read, and its frames, as far as they can be decoded."""

from collections.abc import Iterator
from typing import NamedTuple

import av

from mertool.errors import ClipError
from mertool.media.container import default_stream, first_line

# Streams without time stamps: FFmpeg counts packets, and takes everything up to the next frame for one.
BARE_STREAMS = frozenset({"mp3", "ac3", "eac3", "dts"})
MAX_FAILURES_IN_A_ROW = 50  # to read on from a file; damage that lasts is taken for its end


class Decoded(NamedTuple):
    """A decoded frame, or the message of a packet that cannot be decoded.

    `missing` are the seconds that were lost with the packet and that the time stamps behind it do not count.
    """

    frame: av.AudioFrame | None
    error: str = ""
    missing: float = 0.0


def default_track(container: "av.container.InputContainer") -> "av.audio.stream.AudioStream":
    """Return the first audio stream that is marked as the default, or else the first one."""
    streams = container.streams.audio
    if not streams:
        raise ClipError("no_audio")
    stream = default_stream(streams)
    if stream.codec_context is None:
        raise ClipError("unreadable", "FFmpeg has no decoder for the codec of the audio stream")
    return stream


def decode_frames(container: "av.container.InputContainer", stream: "av.audio.stream.AudioStream") -> Iterator[Decoded]:
    """Yield the frames of a stream, and an error for each packet that cannot be decoded or read."""
    bytes_decoded, seconds_decoded = 0, 0.0
    has_timestamps = container.format.name not in BARE_STREAMS
    for packet in _read_packets(container, stream):
        if isinstance(packet, str):
            yield Decoded(None, packet)
            continue
        seconds = float((packet.duration or 0) * (packet.time_base or 0))
        try:
            for frame in packet.decode():
                if isinstance(frame, av.AudioFrame):
                    yield Decoded(frame)
            bytes_decoded, seconds_decoded = bytes_decoded + packet.size, seconds_decoded + seconds
        except av.error.FFmpegError as error:
            real = 0.0 if has_timestamps or not bytes_decoded else packet.size * seconds_decoded / bytes_decoded
            yield Decoded(None, first_line(error), max(0.0, real - seconds))


def _read_packets(
    container: "av.container.InputContainer", stream: "av.audio.stream.AudioStream"
) -> "Iterator[av.Packet | str]":
    """Yield the packets of a stream, and the message of each place where the file cannot be read."""
    n_failures = 0
    while n_failures < MAX_FAILURES_IN_A_ROW:
        try:
            for packet in container.demux(stream):
                n_failures = 0
                yield packet
            return
        except av.error.FFmpegError as error:  # reading goes on behind the damage
            if not n_failures:
                yield first_line(error)
            n_failures += 1

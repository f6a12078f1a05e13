"""Video frames of one media file, read without intermediate files.

Frames are decoded by decord. PyAV decodes them if decord is not installed, fails, counts other frames than the
container shows (files with an edit list) or does not keep their order (MPEG-1 streams). Both decoders give the same
pixels.
"""

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np

from mertool.errors import ClipError
from mertool.media.container import check_file, first_line, is_cover_image, open_container

# In other containers, such as MPEG program streams, decord returns frames in the wrong order.
DECORD_CONTAINERS = frozenset({"mp4", "matroska"})


def read_frames(
    path: Path,
    fps: float,
    max_frames: int,
    *,
    start: float | None = None,
    end: float | None = None,
    decoder: str = "auto",
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (seconds, RGB frame (H, W, 3) uint8) at about `fps` per second, at most `max_frames`, evenly spread.

    Each is the frame on the screen in the middle of its 1/fps interval. Rotation metadata is applied. `decoder` is
    `auto`, `decord` or `pyav`. Raises ClipError: missing_file, no_video, unreadable, too_short.
    """
    times, container = frame_table(path)
    indices = sample_frames(times, fps, max_frames, start=start, end=end)
    n_decoded = 0
    decord = _decord() if decoder != "pyav" and container in DECORD_CONTAINERS else None
    if decord is not None:
        try:
            reader = decord.VideoReader(str(path), num_threads=1)
            if len(reader) == len(times):
                for index in indices:
                    yield times[index], reader[index].asnumpy()
                    n_decoded += 1
                return
        except (decord.DECORDError, RuntimeError, IndexError, UnicodeEncodeError) as error:
            if decoder == "decord":
                raise ClipError("unreadable", f"decord: {first_line(error)}") from error
    for index, frame in _read_pyav_frames(path, indices[n_decoded:]):
        yield times[index], frame


def frame_table(path: Path) -> tuple[list[float], str]:
    """Return the presentation time of each frame of the video stream in seconds, and the kind of container.

    Times are read from the packets, without decoding. Packets that an edit list discards are not counted; the
    duration that the container states is not used, because it is often wrong. Containers are `mp4`, `matroska`, ...
    """
    check_file(path)
    try:
        with open_container(path) as container:
            stream = _video_stream(container)
            kind = "mp4" if "mp4" in container.format.name else container.format.name.split(",")[0]
            timestamps = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            time_base = float(stream.time_base or 1 / rate)
    except av.error.FFmpegError as error:
        raise ClipError("unreadable", first_line(error)) from error
    if not timestamps:
        raise ClipError("unreadable", "the video stream holds no frame")
    # Packets are in decoding order, so their timestamps are sorted into presentation order.
    ordered = sorted(timestamp for timestamp in timestamps if timestamp is not None)
    if len(ordered) < len(timestamps):
        return [index / rate for index in range(len(timestamps))], kind
    return [(timestamp - ordered[0]) * time_base for timestamp in ordered], kind


def sample_frames(
    times: list[float], fps: float, max_frames: int, *, start: float | None = None, end: float | None = None
) -> list[int]:
    """Return the indices of the frames on the screen in the middle of each of n equal intervals of the clip.

    `times` are the frames' presentation times in seconds. Frames that would be sampled twice are returned once.
    """
    frame_seconds = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / fps
    duration = times[-1] + frame_seconds
    first, last = start or 0.0, min(duration, np.inf if end is None else end)
    if last <= first:
        raise ClipError("too_short", f"the video ends at {duration:.2f} s, before the clip begins")
    count = int(np.clip(round((last - first) * fps), 1, max_frames))
    middles = first + (np.arange(count) + 0.5) * (last - first) / count
    indices = np.searchsorted(times, middles, side="right") - 1
    return sorted(set(np.clip(indices, 0, len(times) - 1).tolist()))


@cache
def _decord() -> Any:
    """Return the module decord, or None on platforms without a wheel of it (Apple silicon, arm64 Linux)."""
    try:
        import_module("torch")  # decord must be imported after torch (decord issue 251)
        decord = import_module("decord")
    except ImportError:
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _video_stream(container: "av.container.InputContainer") -> "av.video.stream.VideoStream":
    """Return the first video stream that is not the cover image of a music file."""
    streams = [stream for stream in container.streams.video if not is_cover_image(stream)]
    if not streams:
        raise ClipError("no_video")
    return streams[0]


def _read_pyav_frames(path: Path, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Decode from the beginning and yield the frames with these indices in order of presentation."""
    remaining = set(indices)
    try:
        with open_container(path) as container:
            stream = _video_stream(container)
            stream.thread_type = "NONE"  # the decoder processes already use all cores
            for index, frame in enumerate(container.decode(stream)):
                if index in remaining:
                    remaining.discard(index)
                    image = frame.to_ndarray(format="rgb24")
                    yield index, np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))
                if not remaining:
                    return
    except (av.error.FFmpegError, ValueError) as error:
        raise ClipError("unreadable", first_line(error)) from error
    if len(remaining) == len(indices):
        raise ClipError("unreadable", "no frame of the video stream can be decoded")

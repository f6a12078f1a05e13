"""Video frames of one media file, read without intermediate files.

Frames are matched to moments by the timestamps of the pictures that were decoded, never by counting: a packet may hold
no picture, as before the first keyframe of a recording that was cut. Packets between a needed frame and the keyframe
of the next one are not decoded.
"""

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mertool.errors import ClipError
from mertool.media.display import to_display
from mertool.media.video_stream import KeyframeWithoutPicture, TimedFrame, VideoStream, clip_errors

MAX_FRAMES = 24 * 3600 * 120  # of a video stream: 24 hours at 120 frames per second
MAX_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class VideoTimeline:
    """When the pictures of a video stream are on the screen, in seconds on the clock that a player shows.

    first: when the first picture appears; packets before it cannot be decoded.
    end: when the last picture disappears.
    keyframes: seconds at which the keyframes appear, ascending.
    """

    first: float
    end: float
    keyframes: Sequence[float]


def read_frames(
    path: Path,
    fps: float,
    max_frames: int,
    *,
    start: float | None = None,
    end: float | None = None,
    errors: list[str] | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (seconds, RGB frame (H, W, 3) uint8) at about `fps` per second, at most `max_frames`, evenly spread.

    Each is the frame on the screen in the middle of its 1/fps interval, as a player shows it: upright, mirrored if the
    file says so, with square pixels. `start` and `end` are seconds on the player's clock, whose zero is the beginning
    of the earliest stream. `errors` gets the messages of packets that cannot be decoded; the other pictures of such a
    video are read. Raises ClipError: missing_file, unsupported, no_video, unreadable, too_short, too_large.
    """
    timeline = read_timeline(path)
    moments = sample_moments(timeline, fps, max_frames, start=start, end=end)
    n_frames = 0
    for timed in _frames_on_screen(path, moments, timeline.keyframes, errors=errors if errors is not None else []):
        with clip_errors():
            picture = to_display(timed.frame, timed.pixel_aspect)
        yield timed.seconds, picture
        n_frames += 1
    if not n_frames:
        raise ClipError("unreadable", "the pictures of this clip cannot be decoded")


def read_timeline(path: Path) -> VideoTimeline:
    """Read when the pictures of a video are shown: from its packets, of which only the first ones are decoded.

    Packets that an edit list discards are not counted. The duration that the container states is not used, because it
    is often wrong.
    """
    first: TimedFrame | None = None
    first_keyframe: float | None = None
    appear, durations, keyframes = array("d"), array("d"), array("d")
    n_packets = 0
    with VideoStream(path) as video:
        for packet in video.packets():
            seconds = None if packet.pts is None else video.seconds(packet.pts)
            if packet.is_keyframe and first_keyframe is None:
                first_keyframe = -np.inf if seconds is None else seconds
            if first is None and first_keyframe is not None:
                first = next((timed for timed in video.decode(packet) if timed.seconds >= first_keyframe), None)
            if not packet.size or packet.is_discard:
                continue
            n_packets += 1
            if n_packets > MAX_FRAMES:
                raise ClipError("too_large", f"the video stream has more than {MAX_FRAMES:,} frames")
            if seconds is not None:
                appear.append(seconds)
                durations.append(float((packet.duration or 0) * video.time_base))
                if packet.is_keyframe:
                    keyframes.append(seconds)
        end = _end_of_stream(np.array(appear), np.array(durations), float(n_packets / video.rate))
    if first_keyframe is None:
        # Some containers flag no keyframe at all; then every picture counts.
        with VideoStream(path) as video:
            first = next(video.frames(lambda: -np.inf), None)
    if first is None:
        cause = f" ({video.errors[0]})" if video.errors else ""
        raise ClipError("unreadable", f"no picture of the video can be decoded from its {n_packets} packets{cause}")
    if end > MAX_SECONDS:
        raise ClipError("too_large", f"the video lasts {end / 3600:.1f} hours; valid are up to {MAX_SECONDS / 3600:g}")
    return VideoTimeline(first.seconds, max(end, first.seconds), sorted(keyframes))


def _end_of_stream(appear: np.ndarray, durations: np.ndarray, duration_without_timestamps: float) -> float:
    """Return when the last picture disappears, from the seconds at which pictures appear, in any order."""
    if not len(appear):
        return duration_without_timestamps
    last = int(appear.argmax())
    # Some containers state no durations of frames.
    spacing = (appear[last] - appear.min()) / (len(appear) - 1) if len(appear) > 1 else duration_without_timestamps
    return float(appear[last] + (durations[last] or spacing))


def sample_moments(
    timeline: VideoTimeline, fps: float, max_frames: int, *, start: float | None = None, end: float | None = None
) -> list[float]:
    """Return the middles of equal intervals, about `fps` per second, of the part of a clip that has pictures.

    Raises ClipError too_short if no picture is shown between `start` and `end` seconds.
    """
    first = max(timeline.first, start or 0.0)
    last = min(timeline.end, np.inf if end is None else end)
    if last <= first:
        raise ClipError(
            "too_short", f"the video is shown from {timeline.first:.2f} to {timeline.end:.2f} s, not in this clip"
        )
    count = int(np.clip(round((last - first) * fps), 1, max_frames))
    return (first + (np.arange(count) + 0.5) * (last - first) / count).tolist()


def _frames_on_screen(
    path: Path, moments: Iterable[float], keyframes: Sequence[float], *, errors: list[str]
) -> Iterator[TimedFrame]:
    """Yield the frames that are on the screen at these moments (ascending seconds), each frame once."""
    remaining = deque(moments)
    try:
        yield from _pick_frames(path, remaining, keyframes, errors=errors)
    except KeyframeWithoutPicture:
        # A container may call a packet a keyframe that is none. Decoding from the beginning needs no keyframes.
        yield from _pick_frames(path, remaining, (), errors=errors)


def _pick_frames(
    path: Path, remaining: deque[float], keyframes: Sequence[float], *, errors: list[str]
) -> Iterator[TimedFrame]:
    """Yield the frames on the screen at the remaining moments, and remove the moments that are done."""

    def keyframe_needed() -> float:
        index = bisect_right(keyframes, remaining[0]) - 1
        return keyframes[index] if index >= 0 else -np.inf

    shown: TimedFrame | None = None
    with VideoStream(path) as video:
        video.errors = errors
        for timed in video.frames(keyframe_needed):
            if shown and remaining[0] < timed.seconds:
                yield shown
            while remaining and remaining[0] < timed.seconds:
                remaining.popleft()
            if not remaining:
                return
            shown = timed
    if shown:
        yield shown

"""Sound and frames from one media file, without intermediate files.

Sound is 16 kHz mono by PyAV (soundfile for wav and flac at that rate). Frames come from decord, and from
PyAV where decord is not installed, fails, counts other frames than the container shows (files with an edit
list), or does not keep the order of frames (MPEG-1 streams); elsewhere both give the same pixels.
"""

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from mertool.errors import ClipError
from mertool.features import SAMPLE_RATE

# decord's frames are right in these; in MPEG program streams it mixes frames up.
DECORD_CONTAINERS = frozenset({"mp4", "matroska"})
DECODERS = ("auto", "decord", "pyav")
# A rate beyond these, in Hz, is damage: resampling would take gigabytes, or blow a second up to hours.
RATES = (1_000, 768_000)
av.logging.set_level(av.logging.PANIC)


def read_audio(path: Path, start: float | None = None, end: float | None = None) -> np.ndarray:
    """Samples (n,) in [-1, 1], float32, 16 kHz mono, of the whole file or from `start` to `end` seconds.

    Raises ClipError: missing_file, no_audio, unreadable, too_short.
    """
    check_file(path)
    samples = _read_soundfile(path)
    if samples is None:
        samples = _read_pyav_audio(path)
    first = round((start or 0) * SAMPLE_RATE)
    samples = samples[first : None if end is None else round(end * SAMPLE_RATE)]
    if len(samples) == 0:
        raise ClipError("too_short", "the audio stream holds no sample of this clip")
    return samples


def read_frames(
    path: Path,
    fps: float,
    most: int,
    start: float | None = None,
    end: float | None = None,
    decoder: str = "auto",
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (seconds, RGB frame (H, W, 3) uint8) at about `fps` per second, at most `most`, evenly spread.

    Each is the frame on the screen in the middle of its 1/fps interval. Rotation metadata is applied.
    Raises ClipError: missing_file, no_video, unreadable, too_short.
    """
    times, container = frame_table(path)
    wanted = sample_frames(times, fps, most, start, end)
    done = 0
    decord = _decord() if decoder != "pyav" and container in DECORD_CONTAINERS else None
    if decord is not None:
        try:
            reader = decord.VideoReader(str(path), num_threads=1)
            if len(reader) == len(times):
                for index in wanted:
                    yield times[index], reader[index].asnumpy()
                    done += 1
                return
        except (decord.DECORDError, RuntimeError, IndexError, UnicodeEncodeError) as error:
            if decoder == "decord":
                raise ClipError("unreadable", f"decord: {_brief(error)}") from error
    for index, frame in _read_pyav_frames(path, wanted[done:]):
        yield times[index], frame


def frame_table(path: Path) -> tuple[list[float], str]:
    """Seconds at which each frame of the video stream is shown, from its packets and without decoding, and
    the kind of container (`mp4`, `matroska`, `mpeg`, ...).

    Packets that an edit list discards are not counted; the container's own duration is not trusted.
    """
    check_file(path)
    try:
        with _open(path) as container:
            stream = _video_stream(container)
            kind = "mp4" if "mp4" in container.format.name else container.format.name.split(",")[0]
            packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
            stamps = [p.pts for p in packets]
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            base = float(stream.time_base or 1 / rate)
    except av.error.FFmpegError as error:
        raise ClipError("unreadable", _brief(error)) from error
    if not stamps:
        raise ClipError("unreadable", "the video stream holds no frame")
    if any(stamp is None for stamp in stamps):
        return [index / rate for index in range(len(stamps))], kind
    ordered = sorted(stamp for stamp in stamps if stamp is not None)
    return [(stamp - ordered[0]) * base for stamp in ordered], kind


def sample_frames(
    times: list[float], fps: float, most: int, start: float | None = None, end: float | None = None
) -> list[int]:
    """Indices of the frames on the screen in the middle of each of n equal intervals of the clip."""
    shown = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / fps
    first, last = start or 0.0, min(times[-1] + shown, np.inf if end is None else end)
    if last <= first:
        raise ClipError("too_short", f"the video ends at {times[-1] + shown:.2f} s, before the clip begins")
    count = int(np.clip(round((last - first) * fps), 1, most))
    middles = first + (np.arange(count) + 0.5) * (last - first) / count
    indices = np.searchsorted(times, middles, side="right") - 1
    return sorted(set(np.clip(indices, 0, len(times) - 1).tolist()))


def check_file(path: Path) -> None:
    """Raise ClipError missing_file if there is no such file, or something that is none (a folder, a pipe)."""
    if not path.is_file():
        raise ClipError("missing_file", f"{path} {'is not a file' if path.exists() else 'does not exist'}")


def _open(path: Path) -> "av.container.InputContainer":
    """Titles and comments are in any encoding, and of no interest here: they must not cost the clip."""
    return av.open(str(path), metadata_errors="replace")


@cache
def _decord() -> Any:
    """The module decord, or None where there is no wheel of it (Apple silicon, arm64 Linux)."""
    try:
        import_module("torch")  # decord must be imported after torch (decord issue 251)
        decord = import_module("decord")
    except ImportError:
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _read_soundfile(path: Path) -> np.ndarray | None:
    """Samples of a wav or flac file that is at 16 kHz already; None for any other, PyAV reads it."""
    if path.suffix.lower() not in (".wav", ".flac"):
        return None
    try:
        if soundfile.info(str(path)).samplerate != SAMPLE_RATE:
            return None
        samples, _ = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, UnicodeEncodeError):
        return None
    return samples.mean(axis=1)


def _read_pyav_audio(path: Path) -> np.ndarray:
    # s16 because a float downmix of stereo comes out sqrt(2) too loud.
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    pieces: list[np.ndarray] = []
    try:
        with _open(path) as container:
            if not container.streams.audio:
                raise ClipError("no_audio")
            for frame in container.decode(container.streams.audio[0]):
                if not RATES[0] <= frame.sample_rate <= RATES[1]:
                    raise ClipError("unreadable", f"no sound has a sample rate of {frame.sample_rate} Hz")
                frame.pts = None  # gaps in the time stamps must not become silence or an error
                pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
            if pieces:
                pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
    except (av.error.FFmpegError, ValueError) as error:
        raise ClipError("unreadable", _brief(error)) from error
    if not pieces:
        raise ClipError("unreadable", "the audio stream holds no sample")
    return np.concatenate(pieces).astype(np.float32) / 32768


def _video_stream(container: "av.container.InputContainer") -> "av.video.stream.VideoStream":
    """The first stream of moving pictures: the cover of a music file is not one."""
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise ClipError("no_video")
    return streams[0]


def _read_pyav_frames(path: Path, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Decode from the beginning and keep the wanted frames, counted in order of presentation."""
    remaining = set(wanted)
    try:
        with _open(path) as container:
            stream = _video_stream(container)
            stream.thread_type = "NONE"
            for index, frame in enumerate(container.decode(stream)):
                if index in remaining:
                    remaining.discard(index)
                    picture = frame.to_ndarray(format="rgb24")
                    yield index, np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90) % 4))
                if not remaining:
                    return
    except (av.error.FFmpegError, ValueError) as error:
        raise ClipError("unreadable", _brief(error)) from error
    if len(remaining) == len(wanted):
        raise ClipError("unreadable", "no frame of the video stream can be decoded")


def _brief(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

"""Audio of one media file, read without intermediate files.

Audio is resampled to 16 kHz mono by PyAV; soundfile reads wav and flac that are at that rate.
"""

from pathlib import Path

import av
import numpy as np
import soundfile

from mertool.errors import ClipError
from mertool.features import SAMPLE_RATE
from mertool.media.container import check_file, first_line, open_container

# Hz. Another rate in a header is damage: resampling would take gigabytes, or turn a second into hours.
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000


def read_audio(path: Path, start: float | None = None, end: float | None = None) -> np.ndarray:
    """Read samples (n,) in [-1, 1], float32, 16 kHz mono, of the whole file or from `start` to `end` seconds.

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


def _read_soundfile(path: Path) -> np.ndarray | None:
    """Read a wav or flac file that is at 16 kHz already; None for any other file, which PyAV reads."""
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
    # s16, because FFmpeg's downmix of stereo to float is too loud by sqrt(2).
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    pieces: list[np.ndarray] = []
    try:
        with open_container(path) as container:
            if not container.streams.audio:
                raise ClipError("no_audio")
            for frame in container.decode(container.streams.audio[0]):
                if not MIN_SAMPLE_RATE <= frame.sample_rate <= MAX_SAMPLE_RATE:
                    raise ClipError("unreadable", f"a sample rate of {frame.sample_rate} Hz is not one of audio")
                frame.pts = None  # gaps in the timestamps must not become silence or an error
                pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
            if pieces:
                pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
    except (av.error.FFmpegError, ValueError) as error:
        raise ClipError("unreadable", first_line(error)) from error
    if not pieces:
        raise ClipError("unreadable", "the audio stream holds no sample")
    return np.concatenate(pieces).astype(np.float32) / 32768

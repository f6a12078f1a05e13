"""Media of less usual formats that a folder may hold can be read."""

from pathlib import Path

import av
import numpy as np
import pytest

from mertool.manifest import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from mertool.media import read_audio, read_frames

RATE = 16_000


def write_audio(path: Path, codec: str, container: str, rate: int = RATE) -> None:
    """Half a second of a tone."""
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)).astype(np.int16)
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = rate
        for resampled in av.AudioResampler(format=stream.format, layout="mono", rate=rate).resample(frame):
            for chunk in _chunks(resampled, stream.codec_context.frame_size):
                out.mux(stream.encode(chunk))
        out.mux(stream.encode(None))


def _chunks(frame: av.AudioFrame, size: int) -> list[av.AudioFrame]:
    fifo = av.AudioFifo()
    fifo.write(frame)
    return fifo.read_many(size, partial=True) if size else [frame]


def write_video(path: Path, codec: str, container: str, pixels: str) -> None:
    """Twelve frames of rising brightness."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8), format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("suffix", "codec", "container"),
    [
        *((".aiff", "pcm_s16be", "aiff"), (".aif", "pcm_s16be", "aiff"), (".au", "pcm_s16be", "au")),
        *((".caf", "pcm_s16le", "caf"), (".weba", "libopus", "webm"), (".w64", "pcm_s16le", "w64")),
        *((".mka", "pcm_s16le", "matroska"), (".wv", "wavpack", "wv")),
    ],
)
def test_audio_formats(suffix, codec, container, tmp_path):
    assert suffix in AUDIO_SUFFIXES
    write_audio(tmp_path / f"a{suffix}", codec, container, 48_000 if codec == "libopus" else RATE)
    samples = read_audio(tmp_path / f"a{suffix}")
    assert len(samples) == pytest.approx(RATE / 2, abs=400)
    assert 0.1 < np.abs(samples).max() < 0.4


@pytest.mark.parametrize(
    ("suffix", "codec", "container", "pixels"),
    [
        *((".mts", "mpeg2video", "mpegts", "yuv420p"), (".m2ts", "mpeg2video", "mpegts", "yuv420p")),
        *((".vob", "mpeg2video", "vob", "yuv420p"), (".gif", "gif", "gif", "rgb8")),
        *(
            (".asf", "wmv2", "asf", "yuv420p"),
            (".f4v", "mpeg4", "mov", "yuv420p"),
            (".mxf", "mpeg2video", "mxf", "yuv420p"),
        ),
    ],
)
def test_video_formats(suffix, codec, container, pixels, tmp_path):
    assert suffix in VIDEO_SUFFIXES
    write_video(tmp_path / f"a{suffix}", codec, container, pixels)
    frames = [frame for _, frame in read_frames(tmp_path / f"a{suffix}", fps=12, max_frames=8)]
    assert len(frames) >= 4
    brightness = [float(frame.mean()) for frame in frames]
    assert brightness == sorted(brightness)
    assert frames[0].shape == (48, 64, 3)

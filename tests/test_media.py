"""Reading media: audio at 16 kHz mono with its level, frames of their moments, reasons of failures."""

import os
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from mertool.errors import ClipError
from mertool.media import read_audio, read_frames

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RATE = 44_100
WIDTH, HEIGHT, FPS = 96, 64, 15


def sine(seconds: float, rate: int = RATE, level: float = 0.5) -> np.ndarray:
    """Return 440 Hz, (2, n) float32, the same in both channels."""
    wave = level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave, wave]).astype(np.float32)


def picture(number: int) -> np.ndarray:
    """Return a frame whose grey encodes its number, with a red top left corner."""
    frame = np.full((HEIGHT, WIDTH, 3), 8 * (number % 30), np.uint8)
    frame[:16, :16] = (250, 20, 20)
    return frame


def make(
    path: Path,
    seconds: float = 2.0,
    video: str | None = "libx264",
    audio: str | None = "aac",
    options: dict[str, str] | None = None,
    rotation: int = 0,
) -> Path:
    """Write a small file with streams of the named codecs."""
    with av.open(str(path), "w", options=options or {}) as out:
        if video:
            video_stream = out.add_stream(video, rate=FPS)
            video_stream.width, video_stream.height, video_stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if audio:
            audio_stream = out.add_stream(audio, rate=RATE, layout="stereo")
        if video:
            for number in range(round(seconds * FPS)):
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                out.mux(video_stream.encode(frame))
            out.mux(video_stream.encode(None))
        if audio:
            wave = sine(seconds)
            resampler = av.AudioResampler(format=audio_stream.format, layout="stereo", rate=RATE)
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            fifo = av.AudioFifo()
            for piece in resampler.resample(frame):
                fifo.write(piece)
            while block := fifo.read(audio_stream.frame_size or 1024, partial=True):
                out.mux(audio_stream.encode(block))
            out.mux(audio_stream.encode(None))
    return path


def frames_of(path: Path, fps: float = FPS, **more) -> tuple[list[float], np.ndarray]:
    pairs = list(read_frames(path, fps, 256, **more))
    return [moment for moment, _ in pairs], np.stack([frame for _, frame in pairs])


def level_of(wave: np.ndarray) -> float:
    """Return the amplitude of a sine, from the middle, where no codec fades."""
    middle = wave[len(wave) // 4 : 3 * len(wave) // 4]
    return float(np.sqrt(2) * middle.std())


def reason_of(action, *args, **more) -> str:
    with pytest.raises(ClipError) as caught:
        result = action(*args, **more)
        list(result)
    return caught.value.reason


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("media") / "测试 clip.mp4")


# ---------------------------------------------------------------- audio


@pytest.mark.parametrize(
    ("name", "codec", "slack"),
    [
        ("a.wav", "pcm_s16le", 2),
        ("a.flac", "flac", 2),
        ("a.mp3", "libmp3lame", 1600),
        ("a.m4a", "aac", 1100),
        ("a.mp4", "aac", 1100),
    ],
)
def test_audio_is_16_khz_mono_at_its_level(name, codec, slack, tmp_path):
    path = make(tmp_path / name, video="libx264" if name.endswith(".mp4") else None, audio=codec)
    wave = read_audio(path)
    assert (wave.ndim, wave.dtype) == (1, np.float32)
    assert abs(len(wave) - 2 * 16_000) <= slack
    # The LAME encoder reduces the level by 5 %, so the level of the decoded file is compared.
    assert level_of(wave) == pytest.approx(level_of(decoded(path)), rel=0.01)
    assert level_of(wave) == pytest.approx(0.5, rel=0.06)


def decoded(path: Path) -> np.ndarray:
    """Return the left channel as decoded, without resampling."""
    with av.open(str(path)) as container:
        wave = np.concatenate(
            [
                frame.to_ndarray().reshape(-1) if not frame.format.is_planar else frame.to_ndarray()[0]
                for frame in container.decode(audio=0)
            ]
        )
        packed = not container.streams.audio[0].format.is_planar
    channel = wave[::2] if packed else wave
    return channel / np.iinfo(channel.dtype).max if channel.dtype.kind == "i" else channel


def test_the_pitch_stays(mp4):
    wave = read_audio(mp4)
    spectrum = np.abs(np.fft.rfft(wave[:16_000]))
    assert spectrum.argmax() == 440


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_audio_at_16_khz_stays_as_it_is(name, tmp_path):
    rng = np.random.default_rng(0)
    noise = (0.3 * rng.normal(size=16_000)).clip(-1, 1)
    soundfile.write(tmp_path / name, noise, 16_000, subtype="PCM_16")
    stored, _ = soundfile.read(tmp_path / name, dtype="float32")
    np.testing.assert_array_equal(read_audio(tmp_path / name), stored)


def test_a_segment_of_the_audio(mp4):
    samples = read_audio(mp4)
    np.testing.assert_array_equal(read_audio(mp4, 0.5, 1.25), samples[8_000:20_000])
    np.testing.assert_array_equal(read_audio(mp4, start=1.5), samples[24_000:])
    np.testing.assert_array_equal(read_audio(mp4, end=0.5), samples[:8_000])


def test_a_segment_beyond_the_end_is_too_short(mp4):
    assert reason_of(read_audio, mp4, 60, 61) == "too_short"


def test_an_empty_wav_is_no_traceback(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16_000)
    assert reason_of(read_audio, tmp_path / "a.wav") == "too_short"


# ---------------------------------------------------------------- frames


def test_frames_are_the_ones_of_their_moments(mp4):
    times, frames = frames_of(mp4, fps=5)
    assert frames.shape == (10, HEIGHT, WIDTH, 3)
    numbers = [round(moment * FPS) for moment in times]
    assert numbers == [1, 4, 7, 10, 13, 16, 19, 22, 25, 28]
    for number, frame in zip(numbers, frames, strict=True):
        assert abs(int(frame[-8:, -8:].mean()) - 8 * (number % 30)) <= 4


def test_a_segment_of_the_frames(mp4):
    times, _ = frames_of(mp4, start=1.0, end=1.4)
    assert times == pytest.approx([n / FPS for n in range(15, 21)])


def test_rotation_metadata_is_applied(tmp_path):
    path = rotated(make(tmp_path / "flat.mp4", 0.5, audio=None), tmp_path / "turned.mp4")
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation != 0, "the test file is not rotated"
    _, frames = frames_of(path)
    assert frames.shape[1:] == (WIDTH, HEIGHT, 3)
    red = frames[0].astype(int)[..., 0] - frames[0][..., 1]
    corners = {
        "top left": red[:12, :12],
        "top right": red[:12, -12:],
        "bottom left": red[-12:, :12],
        "bottom right": red[-12:, -12:],
    }
    assert [name for name, corner in corners.items() if corner.mean() > 100] == ["top right"]


def rotated(path: Path, target: Path) -> Path:
    """Write the same file with a matrix in its track header that rotates it by 90 degrees clockwise."""
    data = bytearray(path.read_bytes())
    box = data.index(b"tkhd")
    matrix = box + 4 + 4 + 20 + 8 + 8  # version and flags, times and id and duration, reserved, layer to volume
    one, none, last = (0x10000).to_bytes(4, "big"), bytes(4), (0x40000000).to_bytes(4, "big")
    assert data[matrix : matrix + 36] == one + none * 3 + one + none * 3 + last
    minus = (0x100000000 - 0x10000).to_bytes(4, "big")
    shift = (HEIGHT << 16).to_bytes(4, "big")
    data[matrix : matrix + 36] = none + one + none + minus + none * 2 + shift + none + last
    target.write_bytes(data)
    return target


def test_a_cover_image_is_not_a_video(tmp_path):
    path = make(tmp_path / "song.m4a", 1.0, video=None)
    covered = tmp_path / "covered.m4a"
    with av.open(str(path)) as source, av.open(str(covered), "w", format="mp4") as out:
        copy = out.add_stream_from_template(source.streams.audio[0])
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
        frame = av.VideoFrame.from_ndarray(picture(3), format="rgb24").reformat(format="yuvj420p")
        out.mux(cover.encode(frame))
        out.mux(cover.encode(None))
    with av.open(str(covered)) as container:
        assert container.streams.video, "the test file has no cover"
    assert reason_of(read_frames, covered, 4, 256) == "no_video"
    assert len(read_audio(covered)) > 15_000


def test_an_edit_list_hides_frames(tmp_path):
    """A cut without re-encoding keeps frames that an edit list hides."""
    source, path = make(tmp_path / "whole.mp4", 2.0, audio=None, video="libx264"), tmp_path / "cut.mp4"
    first = cut_by_edit_list(source, path, 10)
    times, frames = frames_of(path)
    assert len(frames) == 2 * FPS - first
    assert times[0] == 0
    assert abs(int(frames[0][-8:, -8:].mean()) - 8 * first) <= 4


def cut_by_edit_list(source: Path, target: Path, first: int) -> int:
    """Write the same file with an edit list that begins at frame `first`; return `first`."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        step = round(1 / FPS / stream.time_base)
    box = data.index(b"elst")
    assert int.from_bytes(data[box + 8 : box + 12], "big") == 1
    begin = int.from_bytes(data[box + 16 : box + 20], "big")
    data[box + 16 : box + 20] = (begin + first * step).to_bytes(4, "big")
    target.write_bytes(data)
    return first


# ---------------------------------------------------------------- reasons


@pytest.mark.parametrize("read", [read_audio, lambda path: read_frames(path, 4, 256)], ids=["audio", "frames"])
def test_a_missing_file(read, tmp_path):
    assert reason_of(read, tmp_path / "gone.mp4") == "missing_file"


@pytest.mark.parametrize("read", [read_audio, lambda path: read_frames(path, 4, 256)], ids=["audio", "frames"])
@pytest.mark.parametrize(
    "content", [b"", b"To whom it may concern\n" * 99, b"\0" * 5000], ids=["empty", "text", "zeros"]
)
@pytest.mark.parametrize("name", ["a.mp4", "a.wav"])
def test_a_file_that_is_not_media_is_unreadable(read, content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert reason_of(read, tmp_path / name) == "unreadable"


@pytest.mark.parametrize("read", [read_audio, lambda path: read_frames(path, 4, 256)], ids=["audio", "frames"])
def test_a_truncated_file_without_its_index_is_unreadable(read, mp4, tmp_path):
    (tmp_path / "half.mp4").write_bytes(mp4.read_bytes()[: mp4.stat().st_size // 2])
    assert reason_of(read, tmp_path / "half.mp4") == "unreadable"


def test_the_frames_before_a_cut_are_read_and_the_loss_is_told(tmp_path):
    intact = make(tmp_path / "intact.mp4", audio=None, options={"movflags": "faststart"})
    (tmp_path / "cut.mp4").write_bytes(intact.read_bytes()[: intact.stat().st_size * 3 // 4])
    errors: list[str] = []
    times, frames = frames_of(tmp_path / "cut.mp4", errors=errors)
    assert 3 < len(times) < 2 * FPS
    np.testing.assert_array_equal(frames[:4], frames_of(intact)[1][:4])
    assert errors


def test_no_audio_stream(tmp_path):
    path = make(tmp_path / "mute.mp4", 0.5, audio=None)
    assert reason_of(read_audio, path) == "no_audio"
    assert len(frames_of(path)[1]) == 8


@pytest.mark.parametrize("name", ["a.m4a", "a.wav"])
def test_no_video_stream(name, tmp_path):
    path = make(tmp_path / name, 0.5, video=None, audio="aac" if name == "a.m4a" else "pcm_s16le")
    assert reason_of(read_frames, path, 4, 256) == "no_video"
    assert len(read_audio(path)) > 7000


@pytest.mark.parametrize("read", [read_audio, lambda path: read_frames(path, 4, 256)], ids=["audio", "frames"])
def test_a_folder_is_not_a_file(read, tmp_path):
    with pytest.raises(ClipError, match="is not a file") as caught:
        list(read(tmp_path))
    assert caught.value.reason == "missing_file"


def test_audio_at_an_impossible_rate_is_unreadable(tmp_path):
    """A damaged header: a second of audio would become hours, or resampling take gigabytes."""
    for rate in (1, 200_000_000):
        soundfile.write(tmp_path / "a.wav", np.zeros(RATE), rate)
        with pytest.raises(ClipError, match=f"a sample rate of {rate} Hz is not one of audio") as caught:
            read_audio(tmp_path / "a.wav")
        assert caught.value.reason == "unreadable"


# ---------------------------------------------------------------- unusual but valid files


def test_a_title_in_another_encoding_does_not_matter(tmp_path):
    title = "测试"
    for name, codec in (("a.wav", "pcm_s16le"), ("a.mkv", "libx264")):
        with av.open(str(tmp_path / name), "w") as out:
            out.metadata["title"] = title
            stream = out.add_stream(codec, rate=RATE if name == "a.wav" else FPS)
            if name == "a.wav":
                frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE), np.int16), format="s16", layout="stereo")
                frame.sample_rate = RATE
            else:
                stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
                frame = av.VideoFrame.from_ndarray(picture(1), format="rgb24")
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        data = (tmp_path / name).read_bytes()
        assert title.encode() in data
        (tmp_path / name).write_bytes(data.replace(title.encode(), title.encode("gbk") + b"  "))
    assert len(read_audio(tmp_path / "a.wav")) == pytest.approx(8_000, abs=2)
    assert len(frames_of(tmp_path / "a.mkv")[1]) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 there, or in UTF-16")
def test_a_name_in_another_encoding_does_not_matter(mp4, tmp_path):
    named = tmp_path / os.fsdecode("测试".encode("gbk"))
    shutil.copy(mp4, named.with_suffix(".mp4"))
    np.testing.assert_array_equal(frames_of(named.with_suffix(".mp4"))[1], frames_of(mp4)[1])
    with open(named.with_suffix(".wav"), "wb") as file:
        soundfile.write(file, sine(1, 16_000).T, 16_000, format="WAV")
    assert len(read_audio(named.with_suffix(".wav"))) == 16_000


# ---------------------------------------------------------------- real files, if they are there


def shared_media() -> list[Path]:
    return sorted((SHARED / "media").glob("*.*")) if (SHARED / "media").is_dir() else []


needs_media = pytest.mark.skipif(not shared_media(), reason="no ../shared/data/media")
needs_ravdess = pytest.mark.skipif(not (SHARED / "ravdess" / "original_48k").is_dir(), reason="no RAVDESS")


@needs_media
def test_a_real_file_without_audio():
    assert reason_of(read_audio, SHARED / "media" / "fer_test.mp4") == "no_audio"


@needs_media
def test_a_real_file_without_a_face():
    from mertool.faces import find_face

    assert reason_of(find_face, read_frames(SHARED / "media" / "pyfeat_no_face.mp4", 1, 8)) == "no_face"


@needs_ravdess
def test_resampling_is_close_to_the_published_files():
    originals = sorted((SHARED / "ravdess" / "original_48k").glob("*.wav"))
    assert originals
    for original in originals:
        ours = read_audio(original)
        theirs, rate = soundfile.read(SHARED / "ravdess" / "flac" / f"{original.stem}.flac", dtype="float32")
        assert rate == 16_000
        assert abs(len(ours) - len(theirs)) <= 2
        count = min(len(ours), len(theirs))
        error = ours[:count] - theirs[:count]
        assert np.sqrt((error**2).mean()) < 0.05 * np.sqrt((theirs**2).mean())

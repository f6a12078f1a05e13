"""Frames of a video are those that a player shows at their times: matched by timestamps, on the player's clock."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mertool.errors import ClipError
from mertool.media import read_frames, video
from mertool.media.video import VideoTimeline, read_timeline, sample_moments

CASES = Path(__file__).resolve().parents[2] / "shared" / "data" / "cases"
WIDTH, HEIGHT, FPS, GOP = 320, 160, 25, 20

# Name of a file and the codec of its video; each keeps timestamps of its own kind.
KINDS = [
    ("a.mp4", "libx264"),
    ("a.mov", "mjpeg"),
    ("a.mkv", "libx264"),
    ("a.mkv", "libx265"),
    ("a.mkv", "mpeg4"),
    ("a.webm", "libvpx"),
    ("a.webm", "libvpx-vp9"),
    ("a.ts", "libx264"),
    ("a.ts", "mpeg2video"),
    ("a.mpg", "mpeg2video"),
    ("a.flv", "flv"),
    ("a.wmv", "wmv2"),
]
OPTIONS = {
    "libx264": {"bf": "2", "b-pyramid": "none", "x264-params": "scenecut=0:open-gop=1"},
    "libx265": {"x265-params": "log-level=none:scenecut=0:open-gop=1"},
    "mpeg2video": {"bf": "2", "sc_threshold": "1000000000"},
    "flv": {"sc_threshold": "1000000000"},
    "wmv2": {"sc_threshold": "1000000000"},
    "mpeg4": {"bf": "2", "sc_threshold": "1000000000"},
}


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return a picture whose eight columns are the bits of its number, white for 1, most significant first."""
    bits = [(number >> (7 - column)) & 1 for column in range(8)]
    columns = np.repeat(np.array(bits, np.uint8) * 255, width // 8)
    return np.broadcast_to(columns[None, :, None], (height, width, 3)).copy()


def number_of(picture: np.ndarray) -> int:
    """Return the number of a picture made by `numbered`."""
    width = picture.shape[1] // 8
    middles = [picture[:, column * width + width // 4 : (column + 1) * width - width // 4] for column in range(8)]
    return sum(int(middle.mean() > 127) << (7 - column) for column, middle in enumerate(middles))


def write(
    path: Path,
    codec: str = "libx264",
    n_frames: int = 75,
    *,
    keep: Callable[[int], bool] = lambda _: True,
    delay: float = 0.0,
    audio_delay: float | None = None,
    rotate: Callable | None = None,
    pixel_aspect: Fraction | None = None,
) -> Path:
    """Write a numbered video of 25 frames per second.

    keep: whether the packet of this index, in the order of decoding, is in the file. delay, audio_delay: seconds at
    which video and audio begin; no audio if None.
    """
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=FPS, options=OPTIONS.get(codec, {}))
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = GOP, 1
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        sound = None
        if audio_delay is not None:
            sound = out.add_stream("mp2" if path.suffix in (".ts", ".mpg") else "aac", rate=48_000, layout="mono")
        packets = []
        for number in range(n_frames):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = number + round(delay * FPS), Fraction(1, FPS)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        packets = [packet for index, packet in enumerate(packets) if keep(index)]
        if sound is not None:
            packets += silence(sound, n_frames / FPS, audio_delay)
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        out.mux(packets)
    return path


def silence(stream, seconds: float, delay: float) -> list:
    samples = stream.frame_size or 1152
    packets = []
    for index in range(int(seconds * 48_000 / samples)):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, samples), np.float32 if stream.format.name.startswith("flt") else np.int16),
            format=stream.format.name,
            layout="mono",
        )
        frame.sample_rate, frame.time_base = 48_000, Fraction(1, 48_000)
        frame.pts = round(delay * 48_000) + index * samples
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def frames_of(path: Path, fps: float = FPS, **more) -> dict[float, int]:
    """Return the number of each frame by its time in frames."""
    return {round(seconds * FPS, 1): number_of(frame) for seconds, frame in read_frames(path, fps, 256, **more)}


def reason_of(path: Path, **more) -> tuple[str, str]:
    with pytest.raises(ClipError) as caught:
        list(read_frames(path, FPS, 256, **more))
    return caught.value.reason, caught.value.message


# ---------------------------------------------------------------- timestamps


@pytest.mark.parametrize(("name", "codec"), KINDS)
def test_each_frame_stands_at_its_own_time(name, codec, tmp_path):
    path = write(tmp_path / name, codec)
    assert frames_of(path) == {float(n): n for n in range(75)}
    assert frames_of(path, start=1.0, end=2.0) == {float(n): n for n in range(25, 50)}


@pytest.mark.parametrize(("name", "codec"), [kind for kind in KINDS if kind[1] not in ("mjpeg",)])
def test_a_stream_that_begins_between_keyframes_shifts_no_frame(name, codec, tmp_path):
    """Nothing can be decoded before the next keyframe, and the clock begins with the first packet."""
    whole = write(tmp_path / f"whole-{name}", codec)
    path, first = without_first_packets(whole, tmp_path / name, 5)
    frames = frames_of(path)
    assert min(frames.values()) >= GOP - 1
    assert max(frames.values()) == 74
    assert {time + first for time in frames} == {float(number) for number in frames.values()}
    assert reason_of(path, start=0.0, end=(GOP - first - 3) / FPS)[0] == "too_short"


def without_first_packets(source: Path, target: Path, count: int) -> tuple[Path, int]:
    """Copy a file without the first packets; return it, and the number of frame at which its clock begins."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size][count:]
        origin = min(packet.pts for packet in packets)
        begin = container.streams.video[0].start_time
        first = round((origin - begin) * packets[0].time_base * FPS)
        for packet in packets:
            packet.stream = stream
            out.mux(packet)
    return target, first


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.mkv", "mpeg4"), ("a.webm", "libvpx-vp9")])
def test_lost_packets_shift_no_frame(name, codec, tmp_path):
    """Pictures that refer to lost ones are wrong, but those after the next keyframe stand at their times."""
    frames = frames_of(write(tmp_path / name, codec, keep=lambda index: not 24 <= index < 30))
    later = {time: number for time, number in frames.items() if time >= 2 * GOP}
    assert later == {float(n): n for n in range(2 * GOP, 75)}


def test_a_packet_without_a_picture_shifts_no_frame(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(write(tmp_path / "whole.mkv"))) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream = stream
            if index % 10 == 5:
                empty = av.Packet(b"\0\0\0\2\x09\xf0")  # the delimiter of a picture of H.264, and no picture
                empty.stream, empty.time_base = stream, packet.time_base
                empty.pts, empty.dts = packet.pts - 1, packet.dts - 1
                out.mux(empty)
            out.mux(packet)
    assert frames_of(path) == {float(n): n for n in range(75)}


def test_a_false_keyframe_flag_shifts_no_frame(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(write(tmp_path / "true.mkv"))) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream, packet.is_keyframe = stream, True
                out.mux(packet)
    assert frames_of(path, start=1.5, end=2.5) == {float(n): n for n in range(38, 63)}


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_skipping_to_keyframes_gives_the_frames_of_full_decoding(name, tmp_path):
    path = write(tmp_path / name, n_frames=200)
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    sparse = list(read_frames(path, 0.7, 256))
    assert len(sparse) == 6
    for seconds, picture in sparse:
        np.testing.assert_array_equal(picture, pictures[round(seconds * FPS)])


def test_skipped_packets_are_not_decoded(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mkv", n_frames=200)
    decode, decoded = video.VideoStream.decode, []
    monkeypatch.setattr(
        video.VideoStream, "decode", lambda self, packet: [decoded.append(packet), decode(self, packet)][1]
    )
    assert frames_of(path, start=7.0, end=7.2) == {float(n): n for n in range(175, 180)}
    assert len(decoded) < 3 * GOP


def test_a_variable_rate_keeps_a_frame_until_the_next_one(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number, seconds in enumerate((0.0, 0.1, 2.0, 2.1)):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert list(frames_of(path, start=0.5, end=1.9).values()) == [1]
    assert list(frames_of(path, start=0.5, end=2.1).values()) == [1, 2]


# ---------------------------------------------------------------- the clock


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.mov", "a.ts", "a.mpg", "a.flv"])
def test_a_video_that_begins_late_counts_on_the_clock_of_the_file(name, tmp_path):
    codec = {".flv": "flv", ".mpg": "mpeg2video"}.get(Path(name).suffix, "libx264")
    path = write(tmp_path / name, codec, audio_delay=0.0, delay=0.6)
    frames = frames_of(path, start=1.0, end=2.0)
    # Audio codecs begin a little before or after their first sample.
    assert abs(min(frames.values()) - 10) <= 1
    assert abs(max(frames.values()) - 34) <= 1
    assert all(abs(time - number - 15) <= 1 for time, number in frames.items())
    assert reason_of(path, start=0.0, end=0.5)[0] == "too_short"


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_late_audio_does_not_move_the_video(name, tmp_path):
    path = write(tmp_path / name, audio_delay=0.6)
    assert frames_of(path, start=1.0, end=2.0) == {float(n): n for n in range(25, 50)}


def test_a_file_whose_clock_begins_late_counts_from_its_beginning(tmp_path):
    path = write(tmp_path / "a.ts", audio_delay=1000.0, delay=1000.0)
    frames = frames_of(path, start=1.0, end=2.0)
    assert all(abs(time - number) <= 2 for time, number in frames.items())


def test_no_frame_is_repeated_after_the_end(tmp_path):
    path = write(tmp_path / "a.mkv", audio_delay=0.0, n_frames=25)
    assert frames_of(path, fps=60) == {float(n): n for n in range(25)}
    reason, message = reason_of(path, start=1.05, end=1.5)
    assert reason == "too_short"
    assert "the video is shown from 0.0" in message


# ---------------------------------------------------------------- which moments


def moments(shown: tuple[float, float], *settings, **more) -> list[float]:
    return sample_moments(VideoTimeline(*shown, ()), *settings, **more)


def test_moments_are_the_middles_of_equal_intervals():
    assert moments((0, 4), 1, 256) == [0.5, 1.5, 2.5, 3.5]
    assert moments((0, 4), 1, 2) == [1.0, 3.0]
    assert moments((0.6, 4.6), 1, 256, start=1.0, end=3.0) == [1.5, 2.5]


def test_moments_are_between_the_first_picture_and_the_end_of_the_last():
    assert moments((0.5, 1.5), 2, 256, start=0.0, end=9.0) == [0.75, 1.25]


def test_the_shortest_segment_has_one_moment():
    assert moments((0, 4), 4, 256, start=2.0, end=2.01) == pytest.approx([2.005])


@pytest.mark.parametrize("segment", [{"start": 9.0}, {"end": 0.5}])
def test_a_segment_without_pictures_is_too_short(segment):
    with pytest.raises(ClipError, match=r"shown from 0\.50 to 4\.00 s") as caught:
        moments((0.5, 4.0), 4, 256, **segment)
    assert caught.value.reason == "too_short"


# ---------------------------------------------------------------- limits


def mjpeg_file(path: Path, sizes: list[tuple[int, int]], seconds: Iterator[float] | None = None) -> Path:
    """Write JPEG pictures of these sizes as one stream."""
    times = list(seconds) if seconds else [number / FPS for number in range(len(sizes))]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuvj420p"
        stream.time_base = Fraction(1, 1000)
        for size, moment in zip(sizes, times, strict=True):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = *size, "yuvj420p", Fraction(1, 1000)
            frame = av.VideoFrame(*size, "yuvj420p")
            for plane in frame.planes:
                plane.update(bytes([128]) * plane.buffer_size)
            frame.pts, frame.time_base = round(1000 * moment), Fraction(1, 1000)
            for packet in encoder.encode(frame):
                packet.stream = stream
                out.mux(packet)
    return path


def test_a_picture_beyond_8k_is_too_large(tmp_path):
    reason, message = reason_of(mjpeg_file(tmp_path / "a.mkv", [(8200, 8200)]))
    assert reason == "too_large"
    assert "35,389,440" in message


def test_a_picture_that_grows_beyond_8k_is_too_large(tmp_path):
    path = mjpeg_file(tmp_path / "a.mkv", [(64, 64), (64, 64), (8200, 8200)])
    assert reason_of(path)[0] == "too_large"


def test_the_size_may_change_within_the_stream(tmp_path):
    path = mjpeg_file(tmp_path / "a.mkv", [(64, 64), (128, 96)])
    assert [picture.shape for _, picture in read_frames(path, FPS, 256)] == [(64, 64, 3), (96, 128, 3)]


def test_a_video_of_more_than_a_day_is_too_large(tmp_path):
    path = mjpeg_file(tmp_path / "a.mkv", [(64, 64)] * 2, iter((0.0, 25 * 3600.0)))
    assert reason_of(path)[0] == "too_large"


def test_too_many_frames_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_FRAMES", 74)
    assert reason_of(write(tmp_path / "a.mp4")) == ("too_large", "the video stream has more than 74 frames")


def test_a_damaged_packet_costs_its_pictures_and_is_told(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(write(tmp_path / "whole.mkv"))) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            copy = av.Packet(bytes(packet.size)) if index == 30 else packet
            copy.stream, copy.pts, copy.dts, copy.time_base = stream, packet.pts, packet.dts, packet.time_base
            copy.is_keyframe = packet.is_keyframe
            out.mux(copy)
    errors: list[str] = []
    frames = frames_of(path, errors=errors)
    assert {time: number for time, number in frames.items() if time >= 2 * GOP} == {float(n): n for n in range(40, 75)}
    assert errors


def test_a_video_without_a_picture_is_unreadable(tmp_path):
    path, _ = without_first_packets(write(tmp_path / "whole.mkv", n_frames=15), tmp_path / "a.mkv", 5)
    assert reason_of(path)[0] == "unreadable"


# ---------------------------------------------------------------- recorded cases


def number_in_block(picture: np.ndarray) -> int:
    """Return the number of a frame of the recorded cases: eight blocks, least significant first."""
    blocks = [picture[60:100, 40 + 32 * bit : 56 + 32 * bit].mean() > 127 for bit in range(8)]
    return sum(int(white) << bit for bit, white in enumerate(blocks))


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/data/cases")
@pytest.mark.parametrize(
    ("name", "segment", "numbers"),
    [
        ("m_midgop.mkv", {"start": 1, "end": 2}, range(40, 60)),
        ("m_midgop.mkv", {}, range(40, 100)),
        ("v_late2.mkv", {"start": 1, "end": 2}, range(10, 35)),
        ("a_late2.mkv", {"start": 1, "end": 2}, range(25, 50)),
    ],
)
def test_frames_of_recorded_cases(name, segment, numbers):
    frames = list(read_frames(CASES / name, FPS, 256, **segment))
    assert [number_in_block(picture) for _, picture in frames] == list(numbers)


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/data/cases")
def test_the_first_picture_of_a_recording_cut_between_keyframes():
    assert read_timeline(CASES / "m_midgop.mkv").first == pytest.approx(1.2)

"""Audio at its right time and level: clocks, holes, damage, channels, sample formats, limits."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from mertool.errors import ClipError
from mertool.media import audio, load_audio, read_audio

RATE = 48_000
CASES = Path(__file__).resolve().parents[2] / "shared" / "data" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/data/cases")


def clicks(seconds: float, rate: int = RATE, level: float = 0.5) -> np.ndarray:
    """Return (n,) float32 with tones of 1 kHz that last 50 ms, at 0.5, 1.5, 2.5, ... s."""
    times = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * 1000 * times) * (np.abs(times % 1 - 0.525) < 0.025)).astype(np.float32)


def onsets(samples: np.ndarray) -> list[float]:
    """Return the seconds at which the tones begin in samples at 16 kHz."""
    loud = np.convolve(np.abs(samples) > 0.1, np.ones(160), "full")[: len(samples)] > 0
    return (np.flatnonzero(np.diff(loud.astype(int), prepend=0) == 1) / 16_000).tolist()


def tone(frequency: float, seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def level_of(samples: np.ndarray, frequency: float) -> float:
    """Return the amplitude of a tone in the middle of samples at 16 kHz."""
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    return float(2 * abs(np.mean(middle * np.exp(-2j * np.pi * frequency * np.arange(len(middle)) / 16_000))))


def encode(
    path: Path,
    samples: np.ndarray,
    *,
    codec: str = "aac",
    rate: int = RATE,
    layout: str = "mono",
    change: Callable[[list[av.Packet]], list[av.Packet]] = lambda packets: packets,
    **more: str,
) -> Path:
    """Write one audio stream of samples (n,) or (C, n); `change` may drop, move or damage its packets."""
    samples = np.atleast_2d(samples)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout=layout, options=more)
        frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
        fifo = av.AudioFifo()
        for piece in resampler.resample(frame):
            fifo.write(piece)
        packets = []
        while block := fifo.read(stream.frame_size or 1024, partial=True):
            packets += stream.encode(block)
        for packet in change([*packets, *stream.encode(None)]):
            out.mux(packet)
    return path


def moved(packet: av.Packet, seconds: float) -> av.Packet:
    """Return the packet with its time stamps moved."""
    assert packet.pts is not None and packet.dts is not None and packet.time_base
    packet.pts += round(seconds / packet.time_base)
    packet.dts += round(seconds / packet.time_base)
    return packet


def time_of(packet: av.Packet) -> float:
    assert packet.pts is not None and packet.time_base
    return float(packet.pts * packet.time_base)


def reason_of(path: Path) -> str:
    with pytest.raises(ClipError) as caught:
        read_audio(path)
    return caught.value.reason


# ---------------------------------------------------------------- the clock


def with_video(path: Path, *, audio_at: float, video_at: float) -> Path:
    """Write a Matroska file of 3 s whose streams begin at different times."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        sound = out.add_stream("pcm_s16le", rate=RATE, layout="mono")
        packets = []
        for number in range(75):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += video.encode(frame)
        packets = [moved(packet, video_at) for packet in [*packets, *video.encode(None)]]
        samples = (clicks(3)[None] * 32767).astype(np.int16)
        for first in range(0, 3 * RATE, 1024):
            block = av.AudioFrame.from_ndarray(samples[:, first : first + 1024], format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = RATE, first, Fraction(1, RATE)
            packets += [moved(packet, audio_at) for packet in sound.encode(block)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
    return path


def test_audio_that_begins_late_gets_leading_silence(tmp_path):
    samples = read_audio(with_video(tmp_path / "a.mkv", audio_at=0.6, video_at=0.0))
    assert onsets(samples) == pytest.approx([1.1, 2.1, 3.1], abs=0.002)
    assert not samples[: round(0.55 * 16_000)].any()
    assert len(samples) == pytest.approx(3.6 * 16_000, abs=16)


def test_a_segment_counts_from_the_beginning_of_the_file(tmp_path):
    path = with_video(tmp_path / "a.mkv", audio_at=0.6, video_at=0.0)
    assert onsets(read_audio(path, 1.0, 2.0)) == pytest.approx([0.1], abs=0.002)


def test_the_clock_begins_with_the_first_stream(tmp_path):
    path = with_video(tmp_path / "a.mkv", audio_at=5.0, video_at=5.4)
    assert onsets(read_audio(path)) == pytest.approx([0.5, 1.5, 2.5], abs=0.002)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.mov"])
def test_a_hole_in_the_audio_is_silence(name, tmp_path):
    def without_second_second(packets: list[av.Packet]) -> list[av.Packet]:
        return [packet for packet in packets if not 1.0 <= time_of(packet) < 2.0]

    path = encode(tmp_path / name, clicks(4), change=without_second_second)
    samples, stats = load_audio(path)
    assert onsets(samples) == pytest.approx([0.5, 2.5, 3.5], abs=0.003)
    assert len(samples) == pytest.approx(4 * 16_000, abs=700)
    assert "became silence" in stats.note


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libopus"), ("a.mkv", "aac"), ("a.mkv", "libmp3lame")])
def test_a_lost_packet_moves_nothing(name, codec, tmp_path):
    def without_some(packets: list[av.Packet]) -> list[av.Packet]:
        return [packet for number, packet in enumerate(packets) if number not in (10, 40, 41)]

    samples = read_audio(encode(tmp_path / name, clicks(4), codec=codec, change=without_some))
    assert onsets(samples)[-2:] == pytest.approx([2.5, 3.5], abs=0.004)


def test_jitter_of_time_stamps_leaves_the_audio_whole(tmp_path):
    rng = np.random.default_rng(0)
    wave = tone(440, 3, RATE)

    def jittered(packets: list[av.Packet]) -> list[av.Packet]:
        return [moved(packet, 0.005 * rng.random()) for packet in packets]

    samples, stats = load_audio(encode(tmp_path / "a.mkv", wave, codec="pcm_s16le", change=jittered))
    assert stats.note == ""
    assert level_of(samples, 440) == pytest.approx(0.5, rel=0.001)


@pytest.mark.parametrize("drift", [-0.02, 0.02])
def test_audio_keeps_to_a_clock_that_drifts(drift, tmp_path):
    """The clock of a camera and that of its microphone run apart; the tones stay at the times of the picture."""

    def stretched(packets: list[av.Packet]) -> list[av.Packet]:
        return [moved(packet, drift * time_of(packet)) for packet in packets]

    samples, stats = load_audio(encode(tmp_path / "a.mkv", clicks(20), change=stretched))
    expected = [(second + 0.5) * (1 + drift) for second in range(20)]
    begins = np.array(onsets(samples))
    assert all(np.abs(begins - second).min() < 0.12 for second in expected)
    assert "broken time stamps" not in stats.note


@pytest.mark.parametrize("name", ["a.nut", "a.mkv", "a.mp4"])
def test_a_time_stamp_far_ahead_is_disregarded_and_told(name, tmp_path):
    """Silence of days would come of it."""

    def broken(packets: list[av.Packet]) -> list[av.Packet]:
        return [moved(packet, 2e4) if time_of(packet) > 2 else packet for packet in packets]

    samples, stats = load_audio(encode(tmp_path / name, clicks(4), codec="flac", change=broken))
    assert onsets(samples) == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.003)
    assert "broken time stamps" in stats.note


def test_time_stamps_that_go_back_are_disregarded_and_told(tmp_path):
    """Recordings that were joined byte by byte begin again at zero."""
    part = encode(tmp_path / "part.ts", clicks(2), codec="mp2").read_bytes()
    (tmp_path / "joined.ts").write_bytes(part * 3)
    samples, stats = load_audio(tmp_path / "joined.ts")
    assert onsets(samples) == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5, 5.5], abs=0.1)
    assert "broken time stamps" in stats.note


@pytest.mark.parametrize(
    ("name", "codec"), [("a.m4a", "aac"), ("a.mp4", "libmp3lame"), ("a.webm", "libopus"), ("a.mp3", "libmp3lame")]
)
def test_priming_and_padding_of_encoders_are_not_heard(name, codec, tmp_path):
    samples = read_audio(encode(tmp_path / name, clicks(1.9), codec=codec))
    assert onsets(samples) == pytest.approx([0.5, 1.5], abs=0.003)
    assert len(samples) == pytest.approx(1.9 * 16_000, abs=17)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "aac"), ("a.mkv", "flac"), ("a.avi", "ac3")])
def test_a_bad_packet_costs_only_itself_and_is_told(name, codec, tmp_path):
    def damaged(packets: list[av.Packet]) -> list[av.Packet]:
        bad = av.Packet(b"\xff" * 64)
        bad.pts, bad.dts, bad.time_base = packets[40].pts, packets[40].dts, packets[40].time_base
        bad.stream = packets[40].stream
        return [*packets[:40], bad, *packets[41:]]

    samples, stats = load_audio(encode(tmp_path / name, clicks(4), codec=codec, change=damaged))
    assert onsets(samples)[-2:] == pytest.approx([2.5, 3.5], abs=0.008)  # AC-3 is 5 ms late in AVI
    assert "1 packet of audio cannot be decoded" in stats.note


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.flac", "flac")])
def test_a_file_that_was_cut_is_read_as_far_as_it_goes_and_told(name, codec, tmp_path):
    with av.open(str(tmp_path / name), "w", options={"movflags": "faststart"} if name == "a.m4a" else {}) as out:
        stream = out.add_stream(codec, rate=RATE, layout="mono")
        samples = tone(500, 4, RATE) + 0.05 * np.random.default_rng(0).normal(size=4 * RATE).astype(np.float32)
        for first in range(0, 4 * RATE, 1024):
            block = av.AudioFrame.from_ndarray(samples[None, first : first + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts = RATE, first
            out.mux(stream.encode(block))
        out.mux(stream.encode(None))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 6 // 10])
    samples, stats = load_audio(tmp_path / name)
    assert 1.5 * 16_000 < len(samples) < 3 * 16_000
    assert level_of(samples, 500) == pytest.approx(0.5, rel=0.02)
    assert "the header says 4.00 s" in stats.note


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp3", "libmp3lame"),
        ("a.ac3", "ac3"),
        ("a.flac", "flac"),
        ("a.oga", "flac"),
        ("a.ogg", "libopus"),
        ("a.ts", "aac"),
        ("a.mkv", "aac"),
    ],
)
@pytest.mark.parametrize("kind", ["zeros", "noise"])
def test_a_damaged_part_of_a_file_moves_nothing(kind, name, codec, tmp_path):
    rng = np.random.default_rng(0)
    samples = clicks(8) + 0.02 * rng.normal(size=8 * RATE).astype(np.float32)  # FLAC makes little of silence
    path = encode(tmp_path / name, samples, codec=codec)
    data = bytearray(path.read_bytes())
    first, size = len(data) * 4 // 10, len(data) // 20
    data[first : first + size] = bytes(size) if kind == "zeros" else rng.bytes(size)
    path.write_bytes(data)
    samples, stats = load_audio(path)
    assert onsets(samples)[-2:] == pytest.approx([6.5, 7.5], abs=0.03)
    assert len(samples) == pytest.approx(8 * 16_000, abs=800)
    assert "audio" in stats.note


def test_a_sample_rate_that_changes(tmp_path):
    first = encode(tmp_path / "a.mp3", tone(500, 1, 22_050), codec="libmp3lame", rate=22_050)
    second = encode(tmp_path / "b.mp3", tone(500, 1, 44_100), codec="libmp3lame", rate=44_100)
    (tmp_path / "both.mp3").write_bytes(first.read_bytes() + second.read_bytes())
    samples, stats = load_audio(tmp_path / "both.mp3")
    assert len(samples) == pytest.approx(2.1 * 16_000, abs=1600)
    for second_number in (0.2, 1.3):
        part = samples[round(second_number * 16_000) : round((second_number + 0.6) * 16_000)]
        assert level_of(part, 500) == pytest.approx(0.5, rel=0.1)
    assert "the sample rate of the audio changes (22050, 44100 Hz)" in stats.note


def test_channels_that_change(tmp_path):
    """Television switches between stereo and 5.1."""
    stereo = encode(tmp_path / "a.ts", np.stack([tone(500, 1, RATE)] * 2), codec="ac3", layout="stereo")
    front = np.stack([tone(500, 1, RATE), tone(500, 1, RATE), *[np.zeros(RATE, np.float32)] * 4])
    surround = encode(tmp_path / "b.ts", front, codec="ac3", layout="5.1", b="448k")
    (tmp_path / "both.ts").write_bytes(stereo.read_bytes() + surround.read_bytes())
    samples = read_audio(tmp_path / "both.ts")
    assert len(samples) == pytest.approx(2 * 16_000, abs=1600)
    assert level_of(samples[:14_000], 500) == pytest.approx(0.5, rel=0.02)
    assert level_of(samples[-14_000:], 500) == pytest.approx(0.5 * 2**0.5 / (2 + 2**0.5), rel=0.02)


def test_chained_ogg_streams_follow_each_other(tmp_path):
    """Their codecs, rates and channels may differ."""
    links = [
        encode(tmp_path / "a.ogg", clicks(2), codec="libopus"),
        encode(tmp_path / "b.ogg", clicks(2, 44_100), codec="flac", rate=44_100),
        encode(tmp_path / "c.ogg", np.stack([clicks(2)] * 2), codec="libopus", layout="stereo"),
    ]
    (tmp_path / "chain.ogg").write_bytes(b"".join(link.read_bytes() for link in links))
    samples, stats = load_audio(tmp_path / "chain.ogg")
    assert onsets(samples) == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5, 5.5], abs=0.01)
    assert len(samples) == pytest.approx(6 * 16_000, abs=100)
    assert "the sample rate of the audio changes" in stats.note
    np.testing.assert_array_equal(read_audio(tmp_path / "chain.ogg", 1.0, 4.0), samples[16_000:64_000])


def test_a_flac_of_unknown_length(tmp_path):
    soundfile.write(tmp_path / "a.flac", clicks(2, 16_000), 16_000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0  # the number of samples is the low 36 bits of these bytes
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    assert len(read_audio(tmp_path / "a.flac")) == 32_000


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_without_its_length(length, rate, tmp_path):
    """A recorder that died, or that wrote into a pipe, could not fill in the length of the data."""
    soundfile.write(tmp_path / "a.wav", clicks(2, rate), rate, subtype="PCM_16")
    data = bytearray((tmp_path / "a.wav").read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", length)
    data[4:8] = struct.pack("<I", length)
    (tmp_path / "a.wav").write_bytes(data)
    assert len(read_audio(tmp_path / "a.wav")) == 32_000


def test_the_default_track_is_read_and_told(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(3)]
        for stream in streams:
            stream.disposition = av.stream.Disposition(0)
        streams[1].disposition = av.stream.Disposition.default
        for stream, frequency in zip(streams, (200, 300, 400), strict=True):
            samples = (tone(frequency, 1, 16_000)[None] * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = 16_000
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    samples, stats = load_audio(path)
    assert level_of(samples, 300) == pytest.approx(0.5, rel=0.01)
    assert (stats.audio_tracks, stats.audio_track, stats.sample_rate, stats.channels) == (3, 2, 16_000, 1)


# ---------------------------------------------------------------- levels


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("layout", ["stereo", "quad", "5.1", "5.1(side)", "7.1"])
@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le", "flac", "aac"])
def test_every_channel_has_its_weight(codec, layout, rate, tmp_path):
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    frequencies = [300 + 100 * number for number in range(len(names))]
    waves = np.stack([tone(frequency, 1, rate, 0.3) for frequency in frequencies])
    # Matroska has no place for the layout of PCM.
    path = tmp_path / ("a.wav" if codec.startswith("pcm") else "a.mkv")
    encode(path, waves, codec=codec, rate=rate, layout=layout)
    weight_of = {"FL": 2**-0.5, "FR": 2**-0.5, "FC": 1.0, "LFE": 0.0, "BL": 0.5, "BR": 0.5, "SL": 0.5, "SR": 0.5}
    weights = np.array([weight_of[name] for name in names])
    samples = read_audio(path)
    levels = [level_of(samples, frequency) for frequency in frequencies]
    np.testing.assert_allclose(levels, 0.3 * weights / weights.sum(), atol=0.01 if codec == "aac" else 0.001)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("channels", [3, 12, 64])
def test_channels_without_names_count_alike(channels, rate, tmp_path):
    wave = tone(500, 1, rate)
    soundfile.write(tmp_path / "a.wav", np.tile(wave[:, None], (1, channels)), rate)
    samples, stats = load_audio(tmp_path / "a.wav")
    assert level_of(samples, 500) == pytest.approx(0.5, rel=0.001)
    assert stats.channels == channels


def test_channels_in_an_unusual_order(tmp_path):
    """PyAV 18 ends the process on them, unless the decoder does not know their names."""
    waves = np.stack([tone(300, 1, RATE), tone(400, 1, RATE), tone(500, 1, RATE)])
    path = encode(tmp_path / "a.caf", waves, codec="pcm_s16le", layout="3.0")
    data = path.read_bytes()
    place = data.index(b"chan")
    assert struct.unpack(">q", data[place + 4 : place + 12]) == (12,)
    labels = (2, 3, 1)  # right, centre, left
    layout = struct.pack(">III", 0, 0, 3) + b"".join(struct.pack(">II12x", label, 0) for label in labels)
    chunk = b"chan" + struct.pack(">q", len(layout)) + layout
    path.write_bytes(data[:place] + chunk + data[place + 24 :])
    samples = read_audio(path)
    total = 1 + 2**0.5
    levels = [level_of(samples, frequency) * total for frequency in (300, 400, 500)]
    assert levels == pytest.approx([0.5 * 2**-0.5, 0.5, 0.5 * 2**-0.5], rel=0.01)


@pytest.mark.parametrize("name", ["a.wav", "a.mkv", "a.w64", "a.caf"])
@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("level", [2.5, 1e-6])
def test_no_step_clips_or_rounds(level, rate, name, tmp_path):
    """Of the steps of 16 bits the faint tone would have none."""
    waves = np.stack([tone(500, 1, rate, level)] * 2)
    path = encode(tmp_path / name, waves, codec="pcm_f32le", rate=rate, layout="stereo")
    assert level_of(read_audio(path), 500) == pytest.approx(level, rel=0.001)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_sample_format_has_the_same_level(subtype, tmp_path):
    rng = np.random.default_rng(0)
    noise = 0.3 * rng.normal(size=(16_000, 2)).clip(-3, 3)
    soundfile.write(tmp_path / "a.wav", noise, 16_000, subtype=subtype)
    stored, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), stored.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_audio_that_is_not_finite(value, rate, tmp_path):
    wave = tone(500, 1, rate)
    wave[rate // 2] = value
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    assert reason_of(tmp_path / "a.wav") == "not_finite"
    assert len(read_audio(tmp_path / "a.wav", 0.0, 0.4)) == 6_400


# ---------------------------------------------------------------- limits


def flac_that_states(seconds: float, path: Path) -> Path:
    """Write a FLAC of one second that states another length."""
    soundfile.write(path, np.zeros(16_000), 16_000)
    data = bytearray(path.read_bytes())
    data[21] = data[21] & 0xF0 | round(seconds * 16_000) >> 32
    data[22:26] = (round(seconds * 16_000) & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def test_a_stated_length_of_days_is_too_large(tmp_path):
    path = flac_that_states(100 * 3600, tmp_path / "a.flac")
    with pytest.raises(ClipError, match="100 hours of audio; at most 24 are read") as caught:
        read_audio(path)
    assert caught.value.reason == "too_large"


def test_audio_that_goes_on_for_too_long_is_too_large(tmp_path, monkeypatch):
    """A file may not state its length, or state a wrong one."""
    monkeypatch.setattr(audio, "MAX_SECONDS", 1.0)
    soundfile.write(tmp_path / "a.flac", np.zeros(4 * 16_000), 16_000)
    flac = bytearray((tmp_path / "a.flac").read_bytes())
    flac[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(flac)
    assert reason_of(tmp_path / "a.flac") == "too_large"


def test_a_small_file_that_decodes_to_hours_is_too_large(tmp_path, monkeypatch):
    """Compressed silence of a day would fill gigabytes of memory."""
    monkeypatch.setattr(audio, "SECONDS_OF_ANY_BIT_RATE", 60.0)
    soundfile.write(tmp_path / "a.flac", np.zeros(600 * 8_000), 8_000)
    assert reason_of(tmp_path / "a.flac") == "too_large"
    soundfile.write(tmp_path / "b.flac", np.zeros(59 * 8_000), 8_000)
    assert len(read_audio(tmp_path / "b.flac")) == 59 * 16_000


def test_too_many_channels_are_too_large(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((1000, 300)), 16_000)
    with pytest.raises(ClipError, match="300 audio channels; at most 256 are read") as caught:
        read_audio(tmp_path / "a.wav")
    assert caught.value.reason == "too_large"


# ---------------------------------------------------------------- the shared cases


@needs_cases
@pytest.mark.parametrize(
    ("name", "seconds", "tones"),
    [
        ("a_late2.mkv", 4.6, [1.1, 2.1, 3.1, 4.1]),
        ("v_late2.mkv", 4.0, [0.5, 1.5, 2.5, 3.5]),
        ("s_gap.mkv", 4.0, [0.5, 2.5, 3.5]),
        ("s_stream.flac", 4.0, [0.5, 1.5, 2.5, 3.5]),
        ("s_len_zero_16000.wav", 4.0, [0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_tones_of_the_shared_cases(name, seconds, tones):
    samples = read_audio(CASES / name)
    assert onsets(samples) == pytest.approx(tones, abs=0.005)
    assert len(samples) == pytest.approx(seconds * 16_000, abs=400)


@needs_cases
@pytest.mark.parametrize(("name", "seconds"), [("c_tv_st_51.ts", 3.0), ("c_ratechange.mp3", 2.1), ("c_chained.ogg", 2)])
def test_lengths_of_shared_cases_that_change(name, seconds):
    assert len(read_audio(CASES / name)) / 16_000 == pytest.approx(seconds, abs=0.05)


@needs_cases
def test_the_shared_case_with_two_tracks():
    samples, stats = load_audio(CASES / "c_two.mkv")
    assert np.abs(np.fft.rfft(samples[:16_000])).argmax() == pytest.approx(300, abs=1)
    assert (stats.audio_tracks, stats.audio_track) == (2, 2)

"""Extraction over many damaged media files: whatever a file holds, the run ends well and accounts for every clip.

    .venv/bin/python tests/fuzz.py --count 1000 --seed 0

Files are made from the demo's clips and from small ones encoded here: cut, flipped, shuffled, with false numbers
in their headers, of extreme sizes, not media at all. `mertool extract` runs over the folder for audio and for
faces; between the damaged clips are untouched ones. `check` lists what must be true. The same seed and count
make the same files, and the number in a file's name is enough to make that one again.
"""

import argparse
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import wave
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil

from mertool.errors import REASONS, MertoolError
from mertool.manifest import Manifest
from mertool.store import FeatureStore

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
DEMO_CLIPS = (
    "spk01_009",
    "spk02_011",
    "spk03_011",
    "spk04_009",
    "spk04_011",
    "spk06_010",
)  # the smallest of each speaker
CLIP_TIMEOUT = 10
MODALITIES = ("audio", "faces")
MP4 = (".mp4", ".m4a", ".mov")
MKV = (".mkv", ".webm")
RIFF = (".wav", ".avi")
av.logging.set_level(av.logging.PANIC)


# ---------------------------------------------------------------- source files


def encode(
    path: Path,
    *,
    video: str | None = None,
    audio: str | None = None,
    frames: int = 20,
    size: tuple[int, int] = (320, 240),
    samples: int = 22_050,
    rate: int = 16_000,
    layout: str = "mono",
    times: Callable[[int], int] = lambda number: number,
    pictures: list[np.ndarray] | None = None,
) -> Path:
    """Write a small file with streams of the named codecs: a sine with noise, and grey frames or `pictures`."""
    with av.open(str(path), "w") as out:
        if video:
            fps = 25 if video == "mpeg1video" else 15  # MPEG-1 knows no 15
            video_stream = out.add_stream(video, rate=fps)
            video_stream.width, video_stream.height = size
            video_stream.pix_fmt = "yuvj420p" if video == "mjpeg" else "yuv420p"
        if audio:
            audio_stream = out.add_stream(audio, rate=rate, layout=layout)
        out.start_encoding()  # so that a file without frames has its header
        if video:
            grey = np.full((size[1], size[0], 3), 90, np.uint8)
            for number in range(frames):
                picture = pictures[number % len(pictures)] if pictures else grey
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(*size, format=video_stream.pix_fmt)
                frame.pts, frame.time_base = times(number), Fraction(1, fps)
                out.mux(video_stream.encode(frame))
            out.mux(video_stream.encode(None) if frames else [])
        if audio:
            rng = np.random.default_rng(0)
            waveform = 0.3 * np.sin(np.arange(samples) / 6) + 0.05 * rng.normal(size=samples)
            frame = av.AudioFrame.from_ndarray((waveform[None] * 32767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate = rate
            resampler = av.AudioResampler(format=audio_stream.format, layout=layout, rate=rate)
            fifo = av.AudioFifo()
            for piece in resampler.resample(frame) if samples else []:
                fifo.write(piece)
            while block := fifo.read(audio_stream.frame_size or 1024, partial=True):
                out.mux(audio_stream.encode(block))
            out.mux(audio_stream.encode(None) if samples else [])
    return path


def make_sources(folder: Path) -> list[Path]:
    """Copy clips of the demo, and encode their faces in other containers and codecs that this PyAV can write."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [Path(shutil.copy(DEMO / "clips" / f"{clip}.mp4", folder)) for clip in DEMO_CLIPS]
    with av.open(str(made[0])) as container:
        faces = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:20]
    for name, video, audio, rate in (
        ("h264.mkv", "libx264", "aac", 16_000),
        ("mpeg4.avi", "mpeg4", "libmp3lame", 16_000),
        ("mjpeg.avi", "mjpeg", "pcm_s16le", 16_000),
        ("vp8.webm", "libvpx", "libopus", 48_000),
        ("vp9.webm", "libvpx-vp9", "libopus", 48_000),
        ("mpeg1.mpg", "mpeg1video", "mp2", 44_100),
        ("mjpeg.mov", "mjpeg", "pcm_s16le", 44_100),
        ("flv.flv", "flv", "libmp3lame", 44_100),
        ("h264.ts", "libx264", "aac", 44_100),
        ("rate16.wav", None, "pcm_s16le", 16_000),
        ("rate44.wav", None, "pcm_s16le", 44_100),
        ("rate16.flac", None, "flac", 16_000),
        ("rate48.flac", None, "flac", 48_000),
        ("plain.mp3", None, "libmp3lame", 44_100),
        ("plain.m4a", None, "aac", 44_100),
        ("plain.ogg", None, "libopus", 48_000),
    ):
        with suppress(av.error.FFmpegError, av.codec.codec.UnknownCodecError, ValueError):
            made.append(encode(folder / name, video=video, audio=audio, rate=rate, pictures=faces))
    return [path for path in made if path.exists() and path.stat().st_size]


# ---------------------------------------------------------------- kinds of mutation


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of damage.

    make: writes the file at a path and returns the path of the clip, which is mostly the same.
    sources: suffixes of the files it can be made from; None for all.
    suffix: of the damaged file; None for that of its source.
    max_files: so many files of a run at most are of this kind.
    """

    name: str
    make: Callable[[random.Random, Path, Path], Path]
    sources: tuple[str, ...] | None
    suffix: str | None
    max_files: int


KINDS: dict[str, Kind] = {}
Damage = Callable[[random.Random, bytes], bytes]


def damage(*sources: str) -> Callable[[Damage], Damage]:
    """Register a kind that changes the bytes of a source; of sources with these suffixes only."""

    def add(change: Damage) -> Damage:
        def make(rng: random.Random, source: Path, path: Path) -> Path:
            path.write_bytes(change(rng, source.read_bytes()))
            return path

        KINDS[change.__name__] = Kind(
            name=change.__name__, make=make, sources=sources or None, suffix=None, max_files=sys.maxsize
        )
        return change

    return add


def special(suffix: str | None = None, max_files: int = sys.maxsize, possible: bool = True) -> Callable:
    """Register a kind that makes its file by itself: `(rng, source, path)`."""

    def add(make: Callable[[random.Random, Path, Path], Path | None]) -> Callable:
        if possible:
            KINDS[make.__name__] = Kind(
                name=make.__name__,
                make=lambda *args: make(*args) or args[2],
                sources=None,
                suffix=suffix,
                max_files=max_files,
            )
        return make

    return add


def header_of(data: bytes) -> tuple[int, int]:
    """Return the start and end of the index of an MP4, or of the first bytes of anything else."""
    at = data.find(b"moov") - 4
    if at >= 0 and data[4:8] == b"ftyp":
        return at, min(len(data), at + max(16, int.from_bytes(data[at : at + 4], "big")))
    return 0, min(len(data), 600)


def flip(rng: random.Random, data: bytes, span: tuple[int, int], *, count: int) -> bytes:
    """Flip `count` random bits between two positions."""
    start, end = span
    changed = bytearray(data)
    for _ in range(count):
        changed[rng.randrange(start, max(start + 1, end))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def block_of(rng: random.Random, data: bytes) -> tuple[int, int]:
    """Return a random span of a few bytes up to a fifth of the file."""
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.randrange(1, max(2, len(data) // rng.choice([5, 50, 500]))))


@damage()
def cut_anywhere(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


@damage()
def cut_in_header(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(*header_of(data))]


@damage()
def cut_at_end(rng: random.Random, data: bytes) -> bytes:
    return data[: -rng.randrange(1, 200)]


@damage()
def cut_at_front(rng: random.Random, data: bytes) -> bytes:
    return data[rng.choice([1, 4, 32, rng.randrange(1, len(data))]) :]


@damage()
def cut_to_nothing(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.choice([0, 1])]


@damage()
def flip_few(rng: random.Random, data: bytes) -> bytes:
    return flip(rng, data, (0, len(data)), count=rng.randrange(1, 9))


@damage()
def flip_many(rng: random.Random, data: bytes) -> bytes:
    return flip(rng, data, (0, len(data)), count=max(1, len(data) // rng.choice([20, 100, 1000])))


@damage()
def flip_header(rng: random.Random, data: bytes) -> bytes:
    return flip(rng, data, header_of(data), count=rng.randrange(1, 30))


@damage()
def flip_payload(rng: random.Random, data: bytes) -> bytes:
    start, end = header_of(data)
    payload = max([(48, start), (end, len(data))], key=lambda span: span[1] - span[0])
    return flip(rng, data, payload, count=max(1, len(data) // rng.choice([50, 500, 5000])))


@damage()
def zero_block(rng: random.Random, data: bytes) -> bytes:
    start, end = block_of(rng, data)
    return data[:start] + bytes(end - start) + data[end:]


@damage()
def repeat_block(rng: random.Random, data: bytes) -> bytes:
    start, end = block_of(rng, data)
    return data[:start] + data[start:end] * rng.randrange(2, 6) + data[end:]


@damage()
def shuffle_blocks(rng: random.Random, data: bytes) -> bytes:
    size = rng.choice([16, 188, 1024, max(1, len(data) // 4)])
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    first = rng.randrange(len(blocks))
    tail = blocks[first : first + 8]
    rng.shuffle(tail)
    return b"".join(blocks[:first] + tail + blocks[first + 8 :])


@damage()
def insert_block(rng: random.Random, data: bytes) -> bytes:
    start, end = block_of(rng, data)
    return data[:start] + rng.randbytes(end - start) + data[start:]


@damage()
def delete_block(rng: random.Random, data: bytes) -> bytes:
    start, end = block_of(rng, data)
    return data[:start] + data[end:]


@damage()
def swap_bytes(rng: random.Random, data: bytes) -> bytes:
    """As a transfer in text mode does."""
    return data.replace(b"\n", b"\r\n") if rng.random() < 0.5 else data.replace(b"\r", b"")


@damage(*MP4)
def lose_a_box(rng: random.Random, data: bytes) -> bytes:
    """Rename a table, so that it is missing."""
    present = [b for b in (*BOXES, b"moov", b"mdat", b"trak", b"stbl", b"avc1", b"mp4a", b"avcC", b"esds") if b in data]
    return data.replace(rng.choice(present), bytes(rng.choices(b"abcdefgh", k=4)))


@damage(*MP4)
def box_sizes(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 3)):
        name = rng.choice([b for b in (*BOXES, b"moov", b"mdat", b"trak", b"mdia", b"minf", b"avcC") if b in data])
        at = changed.find(name) - 4
        size = int.from_bytes(changed[at : at + 4], "big")
        lie = rng.choice([0, 1, 7, 8, size - 1, size + 1, size * 2, 2**31 - 1, 2**32 - 1])
        changed[at : at + 4] = (lie % 2**32).to_bytes(4, "big")
    return bytes(changed)


# Numbers in headers: the bytes before them, the offset from the beginning of those, the size in bytes.
BOXES = (b"mvhd", b"tkhd", b"mdhd", b"elst", b"stts", b"ctts", b"stsz", b"stco", b"stsc", b"stss", b"stsd", b"hdlr")
Field = tuple[bytes, int, int]
DURATIONS: list[Field] = [
    *[(box, at, 4) for box in (b"mvhd", b"mdhd") for at in (16, 20)],
    *[(b"tkhd", 24, 4), (b"elst", 8, 4), (b"elst", 12, 4), (b"elst", 16, 4), (b"elst", 20, 4)],
    *[(box, at, 4) for box in (b"stts", b"ctts") for at in (8, 12, 16, 20)],
]
TABLES: list[Field] = [
    (box, at, 4) for box in (b"stsz", b"stco", b"stsc", b"stss", b"stsd") for at in (8, 12, 16, 20, 24)
]
SIZES: list[Field] = [
    *[(b"tkhd", 80, 4), (b"tkhd", 84, 4), (b"avc1", 28, 2), (b"avc1", 30, 2), (b"jpeg", 28, 2), (b"jpeg", 30, 2)],
    *[(b"avcC", at, 2) for at in range(4, 24, 2)],
]
RATES: list[Field] = [(b"mp4a", 20, 2), (b"mp4a", 22, 2), (b"mp4a", 28, 4), (b"sowt", 20, 2), (b"sowt", 28, 4)]
RATES += [(b"esds", at, 2) for at in range(30, 44, 2)]
EBML: list[Field] = [
    *[(b"\x44\x89\x88", 3, 8), (b"\x2a\xd7\xb1\x83", 4, 3), (b"\xb5\x88", 2, 8), (b"\x9f\x81", 2, 1)],
    *[(b"\xb0\x82", 2, 2), (b"\xba\x81", 2, 1), (b"\xba\x82", 2, 2), (b"\x23\xe3\x83\x84", 4, 4)],
    *[(b"\x1f\x43\xb6\x75", 4, 8), (b"\xa3", 1, 2), (b"\xa3", 4, 2), (b"\xae", 1, 8), (b"\x18\x53\x80\x67", 4, 8)],
]
CHUNKS: list[Field] = [
    *[(b"RIFF", 4, 4), (b"data", 4, 4), (b"LIST", 4, 4), (b"idx1", 4, 4), (b"movi", 8, 4), (b"fmt ", 4, 4)],
    *[(b"fmt ", at, size) for at, size in ((8, 2), (10, 2), (12, 4), (16, 4), (20, 2), (22, 2))],
    *[(b"avih", at, 4) for at in (8, 24, 32, 40, 44)],
    *[(b"strh", at, 4) for at in (8, 12, 24, 28, 32, 36, 40)],
    *[(b"strf", at, 4) for at in (8, 12, 16, 20)],
]
OTHERS: list[Field] = [
    *[(b"fLaC", 8, 2), (b"fLaC", 10, 2), (b"fLaC", 18, 3), (b"fLaC", 20, 2), (b"fLaC", 21, 5)],
    *[(b"OggS", 5, 1), (b"OggS", 6, 8), (b"OggS", 26, 1), (b"OpusHead", 9, 1), (b"OpusHead", 10, 2)],
    *[(b"OpusHead", 12, 4), (b"OpusHead", 18, 1), (b"Xing", 8, 4), (b"Info", 8, 4), (b"Xing", 4, 4), (b"ID3", 6, 4)],
    *[(b"\0\0\1\xb3", 4, 3), (b"\0\0\1\xb3", 7, 1), (b"\0\0\1\xba", 4, 6), (b"\0\0\1\xc0", 4, 2), (b"FLV", 4, 5)],
    *[(b"onMetaData", 10, 8), (b"width", 6, 8), (b"\xff\xfb", 2, 1), (b"G\x40", 3, 2)],
]


def lie(rng: random.Random, data: bytes, fields: list[Field]) -> bytes:
    """Replace one to four of the numbers by extreme or random ones."""
    changed = bytearray(data)
    present = [f for f in fields if f[0] in data]
    for token, offset, size in rng.choices(present, k=rng.randrange(1, 5)) if present else []:
        places = [at for at in range(len(data)) if data.startswith(token, at)][:8]
        at = rng.choice(places) + offset
        largest = 256**size
        value = rng.choice(
            [0, 1, 2, 17, 255, 4096, largest // 2 - 1, largest // 2, largest - 1, rng.randrange(largest)]
        )
        changed[at : at + size] = (value % largest).to_bytes(size, rng.choice(["big", "little"]))
    return bytes(changed)


@damage(*MP4)
def mp4_durations(rng: random.Random, data: bytes) -> bytes:
    return lie(rng, data, DURATIONS)


@damage(*MP4)
def mp4_tables(rng: random.Random, data: bytes) -> bytes:
    return lie(rng, data, TABLES)


@damage(*MP4)
def mp4_sizes(rng: random.Random, data: bytes) -> bytes:
    return lie(rng, data, SIZES)


@damage(*MP4)
def mp4_rates(rng: random.Random, data: bytes) -> bytes:
    return lie(rng, data, RATES)


@damage(*MKV)
def matroska_numbers(rng: random.Random, data: bytes) -> bytes:
    return lie(rng, data, EBML)


@damage(*RIFF)
def riff_numbers(rng: random.Random, data: bytes) -> bytes:
    return lie(rng, data, CHUNKS)


@damage(".flac", ".ogg", ".mp3", ".mpg", ".flv", ".ts")
def other_numbers(rng: random.Random, data: bytes) -> bytes:
    return lie(rng, data, OTHERS)


@damage(".mp4", ".m4a")
def no_streams(rng: random.Random, data: bytes) -> bytes:
    return data.replace(b"trak", b"free")


@special()
def other_magic(rng: random.Random, source: Path, path: Path) -> None:
    """The first bytes of one container before the rest of another."""
    donors = sorted(path for path in source.parent.iterdir() if path.suffix != source.suffix)
    donor = rng.choice(donors).read_bytes()
    count = rng.choice([4, 12, 48, 600])
    path.write_bytes(donor[:count] + source.read_bytes()[count:])


@special()
def two_joined(rng: random.Random, source: Path, path: Path) -> None:
    second = rng.choice(sorted(source.parent.iterdir())).read_bytes()
    data = source.read_bytes()
    path.write_bytes(data + second if rng.random() < 0.4 else data[: len(data) // 2] + second[len(second) // 2 :])


@special()
def other_suffix(rng: random.Random, source: Path, path: Path) -> Path:
    chosen = rng.choice([".mp4", ".wav", ".flac", ".mkv", ".avi", ".mp3", ".MP4", ".ts", ".3gp", ".wma", ".ogg"])
    return Path(shutil.copy(source, path.with_suffix(chosen)))


@special()
def noise(rng: random.Random, source: Path, path: Path) -> None:
    path.write_bytes(rng.randbytes(rng.randrange(2, 60_000)))


@special()
def not_media(rng: random.Random, source: Path, path: Path) -> Path:
    """The result of a failed download or a wrong copy: a page, a text, JSON, an archive, a picture, a table."""
    packed, picture = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(source, source.name)
    with av.open(picture, "w", format="image2pipe") as out:
        stream = out.add_stream("png", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb24"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
    contents = {
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "text": b"To whom it may concern\n" * rng.randrange(1, 2000),
        "json": b"{}",
        "zip": packed.getvalue(),
        "png": picture.getvalue(),
        "csv": b"clip,path\na,b.mp4\n",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
        "zeros": bytes(rng.choice([2, 100, 70_000])),
    }
    kind = rng.choice(sorted(contents))
    path = path.with_name(f"{path.stem}-{kind}{rng.choice(['.mp4', '.wav', '.mp3', '.mkv', '.flac'])}")
    path.write_bytes(contents[kind])
    return path


@special(".mp4")
def playlist(rng: random.Random, source: Path, path: Path) -> None:
    """Text that FFmpeg reads as a list of files, itself among them, or as the address of a stream."""
    names = [str(source), source.name, path.name, "http://127.0.0.1:9/a.mp4", "/dev/zero", "concat:a.mp4|b.mp4"]
    name = rng.choice(names)
    path.write_text(
        rng.choice(
            [
                f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{name}\n#EXT-X-ENDLIST\n",
                f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{name}\n",
                f"ffconcat version 1.0\nfile '{name}'\n" * rng.choice([1, 50]),
                "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 50002 RTP/AVP 96\n"
                "a=rtpmap:96 H264/90000\n",
                "<?xml version='1.0'?><MPD type='dynamic'><Period><AdaptationSet><Representation id='1'>"
                f"<BaseURL>{name}</BaseURL></Representation></AdaptationSet></Period></MPD>",
            ]
        )
    )


@special(".mp4")
def only_audio(rng: random.Random, source: Path, path: Path) -> None:
    encode(path, audio="aac", layout=rng.choice(["mono", "stereo", "5.1"]), rate=rng.choice([8000, 44_100, 96_000]))


@special(".mp4")
def only_video(rng: random.Random, source: Path, path: Path) -> None:
    encode(path, video=rng.choice(["libx264", "mpeg4", "mjpeg"]), frames=rng.randrange(1, 9))


@special(".mkv")
def no_frames(rng: random.Random, source: Path, path: Path) -> None:
    """Streams that the header lists and that are empty."""
    frames, samples = rng.choice([(0, 0), (0, 8000), (3, 0)])
    encode(path, video="mjpeg", audio="pcm_s16le", frames=frames, samples=samples)


@special(".mkv")
def few_samples(rng: random.Random, source: Path, path: Path) -> None:
    encode(path, audio="pcm_s16le", samples=rng.choice([1, 2, 100, 399, 400, 500]), rate=rng.choice([16_000, 44_100]))


@special(".mkv")
def odd_sizes(rng: random.Random, source: Path, path: Path) -> None:
    video, sizes = rng.choice(
        [
            ("mjpeg", [(1, 1), (2, 2), (17, 13), (1, 600), (4000, 1)]),
            ("libvpx-vp9", [(1, 1), (3, 5), (333, 77)]),
            ("mpeg4", [(2, 2), (18, 600), (4000, 16)]),
            ("libx264", [(16, 2), (2, 16), (2000, 2)]),
        ]
    )
    encode(path, video=video, frames=3, size=rng.choice(sizes))


@special(".mkv", max_files=3)
def huge_frames(rng: random.Random, source: Path, path: Path) -> None:
    encode(path, video="mjpeg", frames=2, size=rng.choice([(7680, 4320), (16_000, 100), (64, 16_000)]))


@special(".mkv")
def odd_times(rng: random.Random, source: Path, path: Path) -> None:
    """Frames hours apart, or far from zero."""
    step, first = rng.choice([(1, 0), (54_000, 0), (10**7, 0), (1, 10**8), (0, 5)])
    bend = rng.randrange(1, 5)
    encode(path, video="mjpeg", frames=6, times=lambda n: first + n + (step * (n - bend) if n > bend else 0))


@special(".wav")
def odd_wav(rng: random.Random, source: Path, path: Path) -> None:
    """Correct but unusual: many channels, other sample sizes, silly rates, full scale, silence."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(rng.choice([1, 2, 7, 40]))
        out.setsampwidth(rng.choice([1, 2, 3, 4]))
        out.setframerate(rng.choice([1, 10, 100, 8000, 16_000, 192_000, 4_000_000]))
        out.writeframes(rng.choice([bytes(16_800), b"\xff\x7f" * 8400, rng.randbytes(16_800)]))


@special(".flac", max_files=2)
def long_audio(rng: random.Random, source: Path, path: Path) -> None:
    """Twenty minutes in a small file."""
    encode(path, audio="flac", samples=16_000 * 1200)


@special(max_files=20)
def odd_name(rng: random.Random, source: Path, path: Path) -> Path:
    number = path.stem.split("-")[0]
    name = rng.choice(
        [
            " two  words ",
            'it\'s "quoted" `$(x)` & more; <b>',
            "测试-クリップ-😀-ñ-أ",
            "%d %03d %s",
            "tab\tand\\back",
            "-o",
            "a,b;c=d?e#f*[x]{y}",
            "e\u0301\u200b\u202e",
            "a:b|c",
            "long" + "-name" * 40,
            "n" * (255 - len(number) - 1 - len(source.suffix)),
        ]
    )
    target = path.with_name(f"{number}-{name}"[: 255 - len(source.suffix)])
    while len(os.fsencode(target.name)) > 255 - len(source.suffix):
        target = target.with_name(target.name[:-1])
    return Path(shutil.copy(source, target.with_name(target.name + source.suffix)))


@special(max_files=4, possible=sys.platform == "linux")
def name_not_utf8(rng: random.Random, source: Path, path: Path) -> Path:
    """A name in GBK, as old archives hold them."""
    name = path.stem.encode() + "测试".encode("gbk") + source.suffix.encode()
    return Path(shutil.copy(source, os.path.join(path.parent, os.fsdecode(name))))


@special(max_files=4, possible=hasattr(os, "geteuid") and os.geteuid() != 0)
def no_permission(rng: random.Random, source: Path, path: Path) -> None:
    shutil.copy(source, path)
    path.chmod(0)


@special(".mp4", max_files=4)
def folder_in_the_way(rng: random.Random, source: Path, path: Path) -> Path:
    """A folder with the name of a video, and a good clip in it."""
    path.mkdir()
    return Path(shutil.copy(source, path / f"{path.stem}-inside{source.suffix}"))


@special(".mp4", max_files=4)
def broken_link(rng: random.Random, source: Path, path: Path) -> None:
    path.symlink_to(rng.choice([path, path.with_name("nowhere.mp4")]))


@special(".wav", max_files=3, possible=Path("/dev/zero").exists())
def device(rng: random.Random, source: Path, path: Path) -> None:
    """A link to a device; to each one once, because a folder's files are seen once however many links there are."""
    taken = {link.readlink() for link in path.parent.glob("*-device.wav")}
    path.symlink_to(
        rng.choice([name for name in ("/dev/zero", "/dev/null", "/dev/urandom") if Path(name) not in taken])
    )


@special(max_files=3)
def sparse(rng: random.Random, source: Path, path: Path) -> None:
    """A good beginning and gigabytes of nothing."""
    shutil.copy(source, path)
    os.truncate(path, 3 << 30)


@special(".mp4", max_files=2, possible=hasattr(os, "mkfifo"))
def fifo(rng: random.Random, source: Path, path: Path) -> None:
    """A pipe without a writer: opening it never returns."""
    os.mkfifo(path)


# ---------------------------------------------------------------- a folder of them


@dataclass(frozen=True)
class Folder:
    """A folder of clips.

    kinds: the kind of each damaged clip, by its id. originals: ids of the untouched clips. paths: of all clips, by id.
    """

    path: Path
    kinds: dict[str, str]
    originals: list[str]
    paths: dict[str, Path]


def make_folder(folder: Path, sources: list[Path], *, count: int, seed: int, originals: int) -> Folder:
    """Make `count` damaged files, every kind once before any is made twice, and `originals` untouched clips."""
    folder.mkdir(parents=True)
    counts: Counter[str] = Counter()
    kind_of: dict[Path, str] = {}
    for number in range(count):
        available = [kind for kind in KINDS.values() if counts[kind.name] < kind.max_files]
        kind = min(available, key=lambda kind: counts[kind.name])
        counts[kind.name] += 1
        rng = random.Random(f"{seed}-{number}")
        fitting = [path for path in sources if kind.sources is None or path.suffix in kind.sources]
        source = rng.choice(fitting)
        kind_of[kind.make(rng, source, folder / f"{number:05d}-{kind.name}{kind.suffix or source.suffix}")] = kind.name
    untouched = {}
    for number in range(originals):
        source, at = sources[number % len(sources)], number * count // originals
        path = folder / f"{at:05d}-{number:03d}-untouched-{source.name}"
        untouched[Path(shutil.copy(source, path))] = source.name
    clips = {clip.path: clip.clip for clip in Manifest.from_folder(folder).clips}
    return Folder(
        folder,
        {clips[path]: kind for path, kind in kind_of.items()},
        [clips[path] for path in untouched],
        {clip: path for path, clip in clips.items()},
    )


# ---------------------------------------------------------------- running and checking


@dataclass(kw_only=True)
class CommandRun:
    """One command: its exit code (None: it was stopped at the limit), the JSON it printed, its errors and its cost."""

    code: int | None
    result: dict
    errors: str
    seconds: float
    peak: int  # bytes resident in all its processes together, memory that they share counted in each


@dataclass
class Findings:
    """The outcome of every clip (`features` or a reason) per modality, the faults, and the files at fault."""

    outcomes: dict[str, dict[str, str]] = field(default_factory=dict)
    messages: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    offending: set[Path] = field(default_factory=set)
    runs: dict[str, CommandRun] = field(default_factory=dict)


def tiny_hubert(folder: Path) -> Path:
    """The demo's speech encoder with random weights."""
    spec = importlib.util.spec_from_file_location("make_encoders", DEMO / "make_encoders.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_encoders(folder)["tiny-random-hubert"]


def run(arguments: list[object], log: Path, limit: float) -> CommandRun:
    """`python -m mertool ARGUMENTS` in a process group of its own, which is killed at the limit."""
    began, peak, code = time.monotonic(), 0, None
    with open(log.with_suffix(".out"), "w+b") as out, open(log.with_suffix(".err"), "w+b") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "mertool", *map(str, arguments)],
            stdout=out,
            stderr=err,
            start_new_session=True,
            # Threads of encoder and detectors fight for the cores otherwise.
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        while time.monotonic() - began < limit and (code := process.poll()) is None:
            peak = max(peak, resident(process.pid))
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.25)
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    printed = log.with_suffix(".out").read_text(errors="replace")
    try:
        result = json.loads(printed)
    except ValueError:
        result = {}
    errors = log.with_suffix(".err").read_text(errors="replace")
    return CommandRun(code=code, result=result, errors=errors, seconds=time.monotonic() - began, peak=peak)


def resident(pid: int) -> int:
    total = 0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def extract(modality: str, folder: Path, output: Path, *, hubert: Path, limit: float) -> CommandRun:
    arguments: list[object] = ["extract", modality, folder, "-o", output, "--clip-timeout", CLIP_TIMEOUT]
    arguments += ["--max-failed", 1, "--json", "--quiet"]
    arguments += ["--encoder", hubert, "--storage", "float32"] if modality == "audio" else ["--fps", 1]
    return run(arguments, output, limit)


def check(work: Path, damaged: Folder, undamaged: Folder, *, hubert: Path, limit: float) -> Findings:
    """Extract both folders and check the results; `undamaged` holds only the untouched clips.

    The command ends in time with exit code 0 and without a traceback; every clip is either in the store or among
    its failures, with a documented reason; the store is valid and finite; untouched clips have the same features in
    both folders.
    """
    findings = Findings()
    for modality in MODALITIES:
        path, reference_path = work / f"{modality}.h5", work / f"undamaged-{modality}.h5"
        reference = extract(modality, undamaged.path, reference_path, hubert=hubert, limit=limit)
        if reference.code != 0:
            findings.faults.append(f"{modality} of untouched clips: exit {reference.code}: {reference.errors[-600:]}")
            continue
        extraction = findings.runs[modality] = extract(modality, damaged.path, path, hubert=hubert, limit=limit)
        if extraction.code is None:
            findings.faults.append(f"{modality}: not over after {limit:.0f} s")
        elif extraction.code != 0:
            findings.faults.append(f"{modality}: exit {extraction.code}")
        if "Traceback" in extraction.errors or (extraction.code and extraction.errors):
            findings.faults.append(f"{modality}: standard error ends with {extraction.errors[-1200:]}")
        try:
            with FeatureStore(path) as store, FeatureStore(reference_path) as alone:
                check_store(modality, store, alone, damaged=damaged, findings=findings)
        except MertoolError as error:
            findings.faults.append(f"{modality}: {error}")
    stores = [work / f"{modality}.h5" for modality in findings.outcomes]
    checked = run(["store", "check", *stores], work / "check", 120)
    if stores and checked.code != 0:
        findings.faults.append(f"mertool store check: exit {checked.code}: {checked.errors}")
    return findings


def check_store(
    modality: str, store: FeatureStore, alone: FeatureStore, *, damaged: Folder, findings: Findings
) -> None:
    """Check one store; `alone` is the store of only the untouched clips."""
    failures = {failure.clip: failure for failure in store.failures()}
    outcomes = dict.fromkeys(store.ids, "features") | {clip: failure.reason for clip, failure in failures.items()}
    findings.outcomes[modality] = outcomes
    findings.messages[modality] = {clip: failure.message for clip, failure in failures.items()}
    clips = {**damaged.kinds, **dict.fromkeys(damaged.originals, "untouched")}

    def report(fault: str, names: list[str]) -> None:
        if names:
            findings.faults.append(f"{modality}: {fault}: {', '.join(names[:20])}")
            findings.offending.update(damaged.paths[name] for name in names if name in damaged.paths)

    report("in the store and among the failures", [clip for clip in store.ids if clip in failures])
    report("lost", [clip for clip in clips if clip not in outcomes])
    report("unknown", [clip for clip in outcomes if clip not in clips])
    report("no documented reason", [clip for clip, failure in failures.items() if failure.reason not in REASONS])
    report("without a message", [clip for clip, failure in failures.items() if not failure.message])
    findings.faults += [f"{modality}: {fault}" for fault in store.validate()]
    report("not finite", [clip for clip in store.ids if not np.isfinite(values_of(store, clip)).all()])
    same = dict(zip(sorted(damaged.originals), sorted([*alone.ids, *(f.clip for f in alone.failures())]), strict=True))
    expected = dict.fromkeys(alone.ids, "features") | {failure.clip: failure.reason for failure in alone.failures()}
    report("untouched, but another outcome", [c for c in same if outcomes.get(c) != expected[same[c]]])
    read = [clip for clip in same if outcomes.get(clip) == expected[same[clip]] == "features"]
    report(
        "untouched, but other features",
        [clip for clip in read if not np.array_equal(values_of(store, clip), values_of(alone, same[clip]))],
    )


def values_of(store: FeatureStore, clip: str) -> np.ndarray:
    return store.read([clip]) if store.pooled else store.frames(clip)


def fuzz(work: Path, *, count: int, seed: int, originals: int, limit: float) -> tuple[Folder, Findings]:
    """Make the files below `work`, run the extractions, check them."""
    sources = make_sources(work / "sources")
    hubert = tiny_hubert(work / "encoders")
    damaged = make_folder(work / "damaged", sources, count=count, seed=seed, originals=originals)
    undamaged = make_folder(work / "undamaged", sources, count=0, seed=seed, originals=originals)
    return damaged, check(work, damaged, undamaged, hubert=hubert, limit=limit)


# ---------------------------------------------------------------- the report


def table(damaged: Folder, findings: Findings) -> Iterator[str]:
    """Yield lines of a table of kinds by outcome, and of the cost of the extractions."""
    for modality, outcomes in findings.outcomes.items():
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for clip, kind in [*damaged.kinds.items(), *((clip, "(untouched)") for clip in damaged.originals)]:
            counts[kind][outcomes.get(clip, "LOST")] += 1
        columns = ["features", *sorted({o for row in counts.values() for o in row} - {"features"})]
        total = {"all": sum(counts.values(), Counter())}
        yield f"{modality:20}" + "".join(f"{column:>14}" for column in columns)
        for kind, row in [*sorted(counts.items()), *total.items()]:
            yield f"{kind:20}" + "".join(f"{row[column] or '.':>14}" for column in columns)
        extraction = findings.runs[modality]
        crashes, timeouts = total["all"]["crashed"], total["all"]["timeout"]
        yield (
            f"{modality}: {extraction.seconds:.0f} s, peak {extraction.peak / 2**30:.1f} GiB in all processes, "
            f"{crashes} crashes of decoder processes, {timeouts} timeouts"
        )
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="damaged files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder for everything made, instead of a temporary one")
    options = parser.parse_args()
    work = options.keep or Path(tempfile.mkdtemp(prefix="mertool-fuzz-"))
    work.mkdir(parents=True, exist_ok=True)
    damaged, findings = fuzz(
        work,
        count=options.count,
        seed=options.seed,
        originals=max(5, options.count // 25),
        limit=120 + 1.5 * options.count,
    )
    print("\n".join(table(damaged, findings)))
    if findings.faults:
        print(f"{len(findings.faults)} checks failed; everything is kept in {work}")
        print("\n".join([*findings.faults, *map(ascii, sorted(findings.offending))]))
        sys.exit(1)
    print(f"{len(damaged.kinds)} damaged files of {len(set(damaged.kinds.values()))} kinds: every check holds")
    if not options.keep:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()

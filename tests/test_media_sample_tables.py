"""Tables of MP4 files that state more samples than the file has bytes are refused before memory is taken for them."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mertool.errors import ClipError
from mertool.media import read_audio, read_frames
from mertool.media.sample_tables import check_sample_tables


@pytest.fixture(params=["plain", "fragmented"])
def mp4(request, tmp_path) -> Path:
    """Return a valid MP4 with video, whose samples are counted in one table or in each fragment."""
    path = tmp_path / f"{request.param}.mp4"
    options = {"movflags": "frag_keyframe+empty_moov"} if request.param == "fragmented" else {}
    with av.open(str(path), "w", options=options) as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def state_samples(path: Path, count: int) -> Path:
    """Change the number of samples that a table of the file states."""
    data = bytearray(path.read_bytes())
    if path.stem == "fragmented":
        place = data.index(b"trun") + 8
    else:
        place = data.index(b"stsz") + 12
        data[place - 4 : place] = (1).to_bytes(4, "big")  # all samples have one byte, so that no sizes are listed
    data[place : place + 4] = count.to_bytes(4, "big")
    path.write_bytes(data)
    return path


def test_a_valid_file_is_read(mp4):
    check_sample_tables(mp4)
    assert len(list(read_frames(mp4, 25, 256))) == 20


@pytest.mark.parametrize("count", [5_000_000, 0xFFFFFFFF])
@pytest.mark.parametrize("read", [read_audio, lambda path: list(read_frames(path, 4, 256))], ids=["audio", "video"])
def test_more_samples_than_bytes_are_too_large(read, count, mp4):
    with pytest.raises(ClipError, match=f"states .*{count:,} samples" if mp4.stem == "plain" else "samples") as caught:
        read(state_samples(mp4, count))
    assert caught.value.reason == "too_large"


def test_boxes_of_64_bits_and_to_the_end_are_looked_into(mp4):
    """The box of all tables gets a size of 64 bits, or none, which means the end of the file."""
    data = state_samples(mp4, 5_000_000).read_bytes()
    kind = b"moof" if mp4.stem == "fragmented" else b"moov"
    place = data.index(kind) - 4
    size = int.from_bytes(data[place : place + 4], "big")
    wide = data[:place] + (1).to_bytes(4, "big") + kind + (size + 8).to_bytes(8, "big") + data[place + 8 :]
    endless = data[:place] + bytes(4) + data[place + 4 :]
    for changed in (wide, endless):
        mp4.write_bytes(changed)
        with pytest.raises(ClipError, match="samples"):
            check_sample_tables(mp4)


@pytest.mark.parametrize("content", [b"", b"\0\0\0\x08ftyp", b"\0\0\0\x02moov" * 9, b"\0\0\0\0moov", b"RIFF" * 9])
def test_other_files_are_left_to_ffmpeg(content, tmp_path):
    (tmp_path / "a.mp4").write_bytes(content)
    check_sample_tables(tmp_path / "a.mp4")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB there")
def test_no_memory_is_taken_for_stated_samples(mp4):
    code = (
        "import resource, sys; from pathlib import Path; from mertool.media import read_frames\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: list(read_frames(Path(sys.argv[1]), 4, 256))\n"
        "except Exception: pass\n"
        "sys.exit(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 50_000)"
    )
    path = str(state_samples(mp4, 0xFFFFFFFF))
    assert subprocess.run([sys.executable, "-c", code, path], check=False, timeout=120).returncode == 0

"""Which files are opened: names are only names, and playlists are never followed."""

import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from mertool.errors import ClipError
from mertool.media.container import open_container

STRANGE_NAMES = [
    "a:b.wav",
    "-i.wav",
    "-",
    "pipe:",
    "pipe:0",
    "data:audio,x.wav",
    "concat:a.wav|b.wav",
    "subfile,,start,0,end,9,,:a.wav",
    "file:a.wav",
    "cache:a.wav",
    "frame%03d.wav",
    "a%20b.wav",
    "line\nbreak.wav",
    "a*?[1].wav",
]

PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{media}\n#EXT-X-ENDLIST\n",
    "m3u": "\ufeff#EXTM3U\n{media}\n",
    "ffconcat": "ffconcat version 1.0\nfile '{media}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "pls": "[playlist]\nFile1={media}\nNumberOfEntries=1\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">{media}</MPD>\n',
    "asx": '<asx version="3.0"><entry><ref href="{media}"/></entry></asx>\n',
    "smooth": '<?xml version="1.0"?>\n<SmoothStreamingMedia MajorVersion="2">{media}</SmoothStreamingMedia>\n',
    "smil": '<smil><body><audio src="{media}"/></body></smil>\n',
    "addresses": "file://{media}\n",
}


@pytest.fixture
def wav(tmp_path) -> Path:
    """Return a second of noise at 16 kHz."""
    soundfile.write(tmp_path / "plain.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    return tmp_path / "plain.wav"


def samples_in(path: Path) -> int:
    with open_container(path) as container:
        return sum(frame.samples for frame in container.decode(audio=0))


@pytest.mark.skipif(os.name == "nt", reason="Windows allows few of these names")
@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_a_strange_file_name_is_a_file_name(name, wav, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(wav, tmp_path / name)
    assert samples_in(Path(name)) == 16_000


@pytest.mark.parametrize("suffix", [".m3u8", ".mp4", ".wav", ".mpd", ".sdp", ""])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_is_not_followed_whatever_its_suffix(kind, suffix, wav, tmp_path):
    playlist = tmp_path / f"list{suffix}"
    playlist.write_text(PLAYLISTS[kind].format(media=wav), encoding="utf-8")
    with pytest.raises(ClipError, match="playlists are not followed") as caught:
        open_container(playlist)
    assert caught.value.reason == "unsupported"


@pytest.mark.parametrize("name", ["picture.png", "picture%d.png"])
def test_a_picture_is_unsupported(name, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / name)
    check_unsupported(tmp_path / name)


def test_subtitles_are_unsupported(tmp_path):
    (tmp_path / "words.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nhello\n\n" * 3, encoding="utf-8")
    check_unsupported(tmp_path / "words.srt")


def check_unsupported(path: Path) -> None:
    with pytest.raises(ClipError, match="no container of audio or video") as caught:
        open_container(path)
    assert caught.value.reason == "unsupported"


def test_a_track_that_lies_in_another_file_is_not_followed(tmp_path):
    """A QuickTime file may refer to its samples by the path of another file."""
    media = tmp_path / "media.mov"
    with av.open(str(media), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 16_000), 1000, np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    referring = tmp_path / "referring.mov"
    referring.write_bytes(refer_to(media))
    follow = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(str(referring), options=follow) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == 16_000
    with open_container(referring) as container:
        assert list(container.demux(audio=0))[:-1] == []


def refer_to(media: Path) -> bytes:
    """Return a QuickTime file whose data reference is an alias record with the path of `media`."""
    data = bytearray(media.read_bytes())
    place = data.index(b"dref") + 12  # after the type, version and flags, and the number of references
    assert data[place + 4 : place + 8] == b"url "
    path = str(media).encode()
    path += bytes(len(path) % 2)
    levels = bytes(16) + (1).to_bytes(2, "big") + (1).to_bytes(2, "big") + bytes(16)
    alias = bytes(10) + bytes(28) + bytes(12) + bytes(64) + levels
    alias += (2).to_bytes(2, "big") + len(path).to_bytes(2, "big") + path + (0xFFFF).to_bytes(2, "big") + bytes(2)
    reference = (12 + len(alias)).to_bytes(4, "big") + b"alis" + bytes(4) + alias
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        start = data.rindex(box, 0, place) - 4
        size = int.from_bytes(data[start : start + 4], "big") + len(reference) - 12
        data[start : start + 4] = size.to_bytes(4, "big")
    data[place : place + 12] = reference
    return bytes(data)


def test_a_file_that_cannot_be_read_is_unreadable(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    with pytest.raises(ClipError) as caught:
        samples_in(tmp_path / "a.wav")
    assert caught.value.reason == "unreadable"

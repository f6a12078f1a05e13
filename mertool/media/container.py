"""Opening of media files, the clock of their streams, and the checks that audio and video share.

Files come from strangers, so only containers that hold their own media are opened, and only as files of this machine.
A playlist names other files or addresses; it is refused whatever its suffix is.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import av

from mertool.errors import ClipError
from mertool.media.ogg_chain import FileSlice
from mertool.media.sample_tables import check_sample_tables

AnyStream = TypeVar("AnyStream", bound="av.stream.Stream")

av.logging.set_level(av.logging.PANIC)

# FFmpeg's demuxers of containers and of bare streams that hold their own media. Playlists (hls, dash, concat, sdp,
# image2, ...), demuxers that open files beside the given one (vobsub, mlv, ...) and the formats of old games are not
# here.
DEMUXERS = (
    *("mov", "matroska", "avi", "asf", "flv", "live_flv", "mpegts", "mpeg", "mxf", "nut", "rm", "ivf", "dv", "wtv"),
    *("wav", "w64", "aiff", "au", "caf", "flac", "ogg", "mp3", "aac", "loas", "amr", "amrnb", "amrwb", "ape"),
    *("wv", "tta", "tak", "mpc", "mpc8", "ac3", "eac3", "ac4", "dts", "dtshd", "truehd", "mlp", "voc", "nistsphere"),
    *("ircam", "gsm", "oma", "dsf", "iff", "sox", "qcp", "spdif", "xwma", "3dostr", "gif", "apng"),
    *("m4v", "mpegvideo", "h261", "h263", "h264", "hevc", "vvc", "av1", "obu", "vc1", "mjpeg", "gxf", "dhav"),
)

# How playlists and other lists of files begin, and what to call them.
PLAYLISTS = (
    (rb"#EXTM3U", "an M3U or HLS playlist"),
    (rb"ffconcat version", "a list of files for ffmpeg"),
    (rb"v=0\r?\n", "an SDP description of a stream"),
    (rb"\[playlist\]", "a PLS playlist"),
    (rb"\[reference\]|<asx|ASF ", "an ASX playlist"),
    (rb"(<\?xml.*?)?<MPD[\s>]", "a DASH manifest"),
    (rb"(<\?xml.*?)?<SmoothStreamingMedia", "a Smooth Streaming manifest"),
    (rb"(<\?xml.*?)?<(playlist|smil|CompositionPlaylist|AssetMap)[\s>]", "a playlist in XML"),
    (rb"(rtsp|rtp|https?|ftp|file)://", "a list of addresses"),
)
HEAD_BYTES = 4096
# FFmpeg searches up to 5 MB of a WAV for DTS in the place of PCM, which takes longer than to decode the clip.
WAV_OPTIONS = {"probesize": "8192", "max_size": "8192"}

MAX_PIXELS = 8192 * 4320  # 8K video, turned by 90 degrees or not


def check_file(path: Path) -> None:
    """Raise ClipError missing_file if the path does not exist or is not a regular file."""
    if not path.is_file():
        raise ClipError("missing_file", f"{path} {'is not a file' if path.exists() else 'does not exist'}")


def open_container(path: Path, span: range | None = None) -> "av.container.InputContainer":
    """Open a media file with PyAV, or the bytes `span` of it as if they were a file.

    Raises ClipError: missing_file, unsupported (a playlist, or a format that is not in DEMUXERS), unreadable, too_large
    (more samples than bytes).
    """
    check_file(path)
    with suppress(OSError):  # opening it tells why a file cannot be read
        check_sample_tables(path)
    # A container may name other files as well; nothing but files of this machine could be opened, and tracks of a
    # QuickTime file that lie in another file are not followed. Opening a file decodes its first pictures; FFmpeg
    # checks their size before it takes memory for them.
    options = {
        "format_whitelist": ",".join(DEMUXERS),
        "protocol_whitelist": "file",
        "enable_drefs": "0",
        "max_pixels": str(MAX_PIXELS),
    }
    source: Any = FileSlice(path, span) if span else f"file:{path.absolute()}"
    try:
        return av.open(
            # With `file:` before it, no name is taken for a protocol (`pipe:`, `data:`, `concat:`) or for an option.
            source,
            options=options | (WAV_OPTIONS if read_head(path)[8:12] == b"WAVE" else {}),
            # Titles and comments may be in any encoding; one that cannot be decoded must not make it unreadable.
            metadata_errors="replace",
        )
    except av.error.FFmpegError as error:
        if kind := playlist_kind(path):
            raise ClipError(
                "unsupported", f"it is {kind}, and playlists are not followed: give the media files"
            ) from error
        if isinstance(error, av.error.ArgumentError):
            raise ClipError("unsupported", "it is no container of audio or video that mertool opens") from error
        raise ClipError("unreadable", first_line(error)) from error


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file; none if it cannot be read, which opening it reports."""
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def playlist_kind(path: Path) -> str | None:
    """Return what kind of playlist the file is, in words; None if it does not begin as one."""
    head = read_head(path).removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((kind for pattern, kind in PLAYLISTS if re.match(pattern, head, re.IGNORECASE | re.DOTALL)), None)


def container_start(container: "av.container.InputContainer") -> float:
    """Return the time stamp in seconds at which the first audio or video stream begins; 0 if none is stated.

    A player shows it as 0:00, so `start` and `end` of clips count from it. Encoder priming of audio is not counted:
    FFmpeg adds the samples that it will skip to the stream's start.
    """
    starts = [
        float(stream.start_time * stream.time_base)
        for stream in (*container.streams.audio, *container.streams.video)
        if stream.start_time is not None and stream.time_base and not is_cover_image(stream)
    ]
    return min(starts, default=0.0)


def is_cover_image(stream: "av.stream.Stream") -> bool:
    """Return whether a stream is the cover image of a music file, which is no video."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def default_stream(streams: Sequence[AnyStream]) -> AnyStream:
    """Return the first of some streams that is marked as the default, or else the first one."""
    default = av.stream.Disposition.default
    return next((stream for stream in streams if stream.disposition & default), streams[0])


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type; of an error of FFmpeg, without the file's name."""
    message = error.strerror if isinstance(error, av.error.FFmpegError) else str(error)
    return ((message or "").strip().splitlines() or [type(error).__name__])[0][:200]

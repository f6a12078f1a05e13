"""Audio of one media file as 16 kHz mono, on the clock that a player shows.

All formats go one way: FFmpeg decodes, `downmix` makes float32 mono of each frame, `timeline` puts the frames at their
times and resamples them. No step rounds to 16 bits or clips. What can be decoded of a damaged file is kept.
"""

from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from mertool.errors import ClipError, count_of
from mertool.features import SAMPLE_RATE
from mertool.media.audio_stream import decode_frames, default_track
from mertool.media.container import container_start, first_line, open_container
from mertool.media.downmix import Downmixer, take_channel_names
from mertool.media.ogg_chain import chain_links
from mertool.media.timeline import AudioTimeline
from mertool.media_stats import MediaStats

# Hz. Another rate in a header is damage: resampling would take gigabytes, or turn a second into hours.
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000
MAX_CHANNELS = 256
MAX_SECONDS = 24 * 3600.0
# Containers whose header, or end, counts the samples.
HEADERS_WITH_LENGTH = frozenset({"flac", "mov", "ogg", "wav", "aiff", "caf", "w64", "au", "ape", "wv", "tta", "mp3"})
MIN_BIT_RATE = 1000  # bits per second; silence of Opus has more in any container with time stamps
SECONDS_OF_ANY_BIT_RATE = 3600.0  # silence of FLAC has less, so only longer audio of less is refused
# Encoders pad the last frame. MP4 states the true end; audio of more than a frame beyond it is no padding.
MAX_PADDING = 0.1


class Audio(NamedTuple):
    """Samples (n,) float32 at 16 kHz, and what the file says of its audio."""

    samples: np.ndarray
    stats: MediaStats


def read_audio(path: Path, start: float | None = None, end: float | None = None) -> np.ndarray:
    """Read samples (n,) float32, 16 kHz mono, of the whole file or from `start` to `end` seconds; see `load_audio`."""
    return load_audio(path, start, end).samples


def load_audio(path: Path, start: float | None = None, end: float | None = None) -> Audio:
    """Read the default audio track, of the whole file or from `start` to `end` seconds of the file's clock.

    Full scale is 1; float audio may be beyond it. Raises ClipError: missing_file, unsupported, no_audio, unreadable,
    too_short, too_large, not_finite.
    """
    first = round((start or 0) * SAMPLE_RATE)
    last = None if end is None else round(end * SAMPLE_RATE)
    with open_container(path) as container:
        stream = default_track(container)
        channels, declared = take_channel_names(stream), _declared_seconds(container, stream)
        _check_limits(stream.codec_context.sample_rate, len(channels), declared)
        links = chain_links(path) if container.format.name == "ogg" else []
        timeline = AudioTimeline(first, last, declared if len(links) < 2 else None)
        with np.errstate(over="ignore", invalid="ignore"):  # samples that are not finite are reported below
            if len(links) < 2:
                errors = _fill_timeline(timeline, container, stream, Downmixer(channels))
            else:
                errors = _read_chain(timeline, path, links)
        if errors and not timeline.rates:
            raise ClipError("unreadable", errors[0])
        samples = timeline.finish(_end_before_padding(container, stream, timeline))
        stats = _describe(container, stream, timeline=timeline, errors=errors, n_samples=len(samples))
    if len(samples) == 0:
        raise ClipError("too_short", "the audio stream holds no sample of this clip")
    if not np.isfinite(samples).all():
        raise ClipError("not_finite", "the audio holds samples that are NaN or infinite")
    return Audio(samples, stats)


def _declared_seconds(container: "av.container.InputContainer", stream: "av.audio.stream.AudioStream") -> float | None:
    """Return the duration that the file states, or None."""
    if not container.duration or container.duration < 0:
        return None
    seconds, bits = container.duration / av.time_base, 8 * container.size
    codec = stream.codec_context
    if codec.name.startswith(("pcm_", "adpcm_")) and codec.bit_rate:
        # A recorder that died, or wrote into a pipe, leaves the largest number; the size of the file is the truth.
        seconds = min(seconds, bits / codec.bit_rate)
    if seconds > MAX_SECONDS and not HEADERS_WITH_LENGTH & set(container.format.name.split(",")):
        # The length is the distance of time stamps, one of which may be broken. No real audio has so few bits.
        return seconds if bits / seconds > MIN_BIT_RATE else None
    return seconds


def _check_limits(rate: int, channels: int, seconds: float | None) -> None:
    """Raise ClipError if a rate, a number of channels or a duration is beyond the limits; 0 and None are unknown."""
    if rate and not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise ClipError("unreadable", f"a sample rate of {rate} Hz is not one of audio")
    if channels > MAX_CHANNELS:
        raise ClipError("too_large", f"{channels} audio channels; at most {MAX_CHANNELS} are read")
    if seconds and seconds > MAX_SECONDS:
        raise ClipError("too_large", f"{seconds / 3600:.0f} hours of audio; at most {MAX_SECONDS / 3600:.0f} are read")


def _check_bit_rate(bits: int, seconds: float) -> None:
    """Raise ClipError if a small file has decoded to hours: it was made to fill the memory, or holds only silence."""
    if seconds > SECONDS_OF_ANY_BIT_RATE and bits / seconds < MIN_BIT_RATE:
        raise ClipError("too_large", f"{bits // 8} bytes decode to more than {seconds / 60:.0f} minutes of audio")


def _read_chain(timeline: AudioTimeline, path: Path, links: list[range]) -> list[str]:
    """Decode the links of a chained Ogg file one after another; return the messages of what cannot be decoded."""
    errors = []
    for link in links:
        try:
            with open_container(path, link) as container:
                stream = default_track(container)
                downmixer = Downmixer(take_channel_names(stream))
                timeline.restart_timestamps()
                errors += _fill_timeline(timeline, container, stream, downmixer)
        except ClipError as error:
            if error.reason == "too_large":
                raise
            errors.append(error.message)
        if timeline.is_complete:
            break
    return errors


def _fill_timeline(
    timeline: AudioTimeline,
    container: "av.container.InputContainer",
    stream: "av.audio.stream.AudioStream",
    downmixer: Downmixer,
) -> list[str]:
    """Decode frames until the timeline is complete; return the messages of packets that cannot be decoded."""
    zero = container_start(container)
    errors = []
    for frame, error, missing in decode_frames(container, stream):
        if frame is None:
            errors.append(error)
            timeline.delay(missing)
            continue
        _check_limits(frame.sample_rate, frame.layout.nb_channels, timeline.clock)
        _check_bit_rate(8 * container.size, timeline.clock)
        try:
            samples = downmixer.to_mono(frame)
        except ValueError as failure:
            raise ClipError("unreadable", first_line(failure)) from failure
        timeline.add(samples, frame.sample_rate, None if frame.time is None else frame.time - zero)
        if timeline.is_complete:
            break
    return errors


def _end_before_padding(
    container: "av.container.InputContainer", stream: "av.audio.stream.AudioStream", timeline: AudioTimeline
) -> float | None:
    """Return the second at which the audio ends and the padding of the encoder begins; None if nothing says so.

    FFmpeg removes the padding that Opus, MP3 and Matroska state; of MP4 it is what lies beyond the track's duration.
    """
    end = _stated_end(container, stream)
    return end if end is not None and 0 < timeline.clock - end < MAX_PADDING else None


def _stated_end(container: "av.container.InputContainer", stream: "av.audio.stream.AudioStream") -> float | None:
    """Return the second at which the header says that the audio ends; None if no header says so.

    Other lengths are estimated, or found at the end of what is left of a file.
    """
    if not stream.duration or not stream.time_base or not {"mov", "flac"} & set(container.format.name.split(",")):
        return None
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base) - container_start(container)


def _describe(
    container: "av.container.InputContainer",
    stream: "av.audio.stream.AudioStream",
    *,
    timeline: AudioTimeline,
    errors: list[str],
    n_samples: int,
) -> MediaStats:
    """Return the facts of the audio, with a note of everything that was lost or disregarded."""
    notes = []
    if errors:
        count = count_of(len(errors), "packet")
        notes.append(f"{count} of audio cannot be decoded ({errors[0]})")
    stated_end = _stated_end(container, stream)
    if stated_end and timeline.clock < stated_end - MAX_PADDING and not timeline.is_complete:
        notes.append(f"the audio ends at {timeline.clock:.2f} s, the header says {stated_end:.2f} s")
    if timeline.silence:
        notes.append(f"{timeline.silence:.2f} s of audio are missing in the file and became silence")
    if timeline.n_jumps:
        notes.append(f"broken time stamps of audio were disregarded ({timeline.n_jumps})")
    if len(timeline.rates) > 1:
        notes.append(f"the sample rate of the audio changes ({', '.join(map(str, timeline.rates))} Hz)")
    tracks = container.streams.audio
    return MediaStats(
        seconds=n_samples / SAMPLE_RATE,
        sample_rate=timeline.rates[0] if timeline.rates else 0,
        channels=stream.codec_context.channels,
        audio_tracks=len(tracks),
        audio_track=1 + tracks.index(stream),
        note="; ".join(notes),
    )

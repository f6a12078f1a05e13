"""One rule that makes mono of any audio frame: decode to float32 and weight the channels as FFmpeg does.

FFmpeg downmixes by the coefficients of ITU-R BS.775: front left and right count 0.707 of the centre, surround channels
half of it, the low-frequency channel nothing. The coefficients are divided by their sum where it is above 1, so that
the sum of full channels does not clip. Stereo becomes the mean of its channels. FFmpeg itself divides only where it
mixes integers, so that its mono of float audio is louder; here all formats have the same level.
"""

import ctypes
from typing import Any

import av
import numpy as np
from av.audio.plane import AudioPlane

FRONT, CENTRE, SURROUND = 2**-0.5, 1.0, 0.5
WEIGHTS = {
    "FC": CENTRE,
    **dict.fromkeys(("FL", "FR", "FLC", "FRC", "DL", "DR", "WL", "WR"), FRONT),
    **dict.fromkeys(("LFE", "LFE2"), 0.0),
    # The first channel of ambisonics is the sound from everywhere, the others are differences between directions.
    "AMBI0": CENTRE,
    **{f"AMBI{number}": 0.0 for number in range(1, 64)},
}
# FFmpeg takes so many channels without a stated layout for these layouts.
GUESSED_LAYOUTS = {
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}
UNKNOWN_CHANNELS = ("NONE", "UNK", "")
# Sample formats by FFmpeg's names: the type, the value of silence, the value of full scale.
SAMPLE_FORMATS = {
    "u8": (np.uint8, 128, 2.0**7),
    "s16": (np.int16, 0, 2.0**15),
    "s32": (np.int32, 0, 2.0**31),
    "s64": (np.int64, 0, 2.0**63),
    "flt": (np.float32, 0, 1.0),
    "dbl": (np.float64, 0, 1.0),
}


def take_channel_names(stream: "av.audio.stream.AudioStream") -> tuple[str, ...]:
    """Return FFmpeg's names of the channels of a stream that is not decoded yet; they are `NONE` if it states none.

    PyAV 18 frees the list of channels of an unusual layout (right before left, say) with each frame and again with the
    decoder, which ends the process. So the decoder is told that the channels have no names, and the object that holds
    the list is never freed.
    """
    layout = stream.codec_context.layout
    names = tuple(channel.name for channel in layout.channels)
    if " channels (" in layout.name:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
        stream.codec_context.layout = f"{len(names)} channels"
    return names


class Downmixer:
    """Makes mono of the frames of one stream. `stated` are the channels' names, see `take_channel_names`."""

    def __init__(self, stated: tuple[str, ...] = ()):
        self.stated = stated
        self._weights: dict[str, np.ndarray] = {}

    def to_mono(self, frame: av.AudioFrame) -> np.ndarray:
        """Return the samples of a frame as (n,) float32, where 1 is full scale; float audio may be beyond it.

        Raises ValueError for a sample format that is not in SAMPLE_FORMATS.
        """
        name = frame.format.name
        kind = name.removesuffix("p") if frame.format.is_planar else name
        if kind not in SAMPLE_FORMATS:
            raise ValueError(f"samples of the format {name} cannot be read; valid: {', '.join(SAMPLE_FORMATS)}")
        dtype, silence, full_scale = SAMPLE_FORMATS[kind]
        weights = self._weights_of(frame.layout)
        used = np.flatnonzero(weights)
        values = _channels(frame, dtype, used, len(weights)).astype(np.float32)
        if full_scale != 1:
            values = (values - np.float32(silence)) / np.float32(full_scale)
        return values[0] if len(used) == 1 and weights[used[0]] == 1 else weights[used] @ values

    def _weights_of(self, layout: av.AudioLayout) -> np.ndarray:
        """Return the weights of a layout; the names of a layout's channels take longer to read than its own."""
        if layout.name not in self._weights:
            names = tuple(channel.name for channel in layout.channels)
            nameless = set(names) <= set(UNKNOWN_CHANNELS)
            self._weights[layout.name] = channel_weights(
                self.stated if nameless and len(self.stated) == len(names) else names
            )
        return self._weights[layout.name]


def channel_weights(channels: tuple[str, ...]) -> np.ndarray:
    """Return the weight (C,) float32 of each channel, named as FFmpeg does; of unknown channels, equal weights.

    >>> channel_weights(("FL", "FR")).tolist()
    [0.5, 0.5]
    """
    if set(channels) <= set(UNKNOWN_CHANNELS):
        channels = GUESSED_LAYOUTS.get(len(channels), channels)
    if set(channels) <= set(UNKNOWN_CHANNELS):
        weights = np.ones(len(channels))
    else:
        weights = np.array([WEIGHTS.get(channel, SURROUND) for channel in channels])
    if not weights.any() or len(channels) == 1:
        weights = np.ones(len(channels))  # a low-frequency channel alone is all the sound there is
    return (weights / max(1.0, weights.sum())).astype(np.float32)


def _channels(frame: av.AudioFrame, dtype: type, used: np.ndarray, n_channels: int) -> np.ndarray:
    """Return the used channels (C, n) of a frame as they are stored.

    The planes are read one by one: `AudioFrame.to_ndarray` reads beyond the last one of eight channels and more.
    """
    if frame.format.is_planar:
        return np.stack([_read_plane(frame, int(index), dtype, frame.samples) for index in used])
    packed = _read_plane(frame, 0, dtype, frame.samples * n_channels)
    return packed.reshape(frame.samples, n_channels).T[used]


def _read_plane(frame: av.AudioFrame, index: int, dtype: type, count: int) -> np.ndarray:
    plane: Any = AudioPlane(frame, index)  # a buffer, which its type does not say
    return np.frombuffer(plane, dtype, count)

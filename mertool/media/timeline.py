"""`AudioTimeline`: decoded audio on the clock of its file, at 16 kHz."""

import math

import av
import numpy as np

from mertool.features import SAMPLE_RATE

# Time stamps that are off by less are rounding (1 ms in Matroska) or the jitter of a recorder. A lost packet is longer.
JITTER = 0.010
# Time stamps may lie so far before the end of the audio so far: holes were rounded up, and clocks of recorders drift.
# Beyond it the overlap is cut, and beyond twice of it the time stamp is broken.
MAX_OVERLAP = 0.1
# A longer hole is a broken time stamp, not silence.
MAX_HOLE = 3600.0
SECONDS_PER_BLOCK = 1  # resampled at a time, because a call of FFmpeg costs more than a frame's work


class AudioTimeline:
    """Puts decoded mono audio of any rate together at 16 kHz, each frame at its time; holes become silence.

    Samples before `first` and from `last` on (counted at 16 kHz from time zero) are not kept. `declared` is the
    duration that the file states, in seconds: no hole may end beyond it. A time stamp that cannot be right (far beyond
    what the file states, or going back) is disregarded: the audio goes on where it was, and so do the later time
    stamps. `n_jumps` counts them; `silence` is the length of the holes in seconds, and `rates` are the sample rates in
    their order.
    """

    def __init__(self, first: int = 0, last: int | None = None, declared: float | None = None):
        self.first, self.last = first, math.inf if last is None else last
        self.declared = declared
        self.n_jumps, self.silence, self.rates = 0, 0.0, list[int]()
        self._kept = (
            bytearray()
        )  # float32; it grows without a second copy, which a list of pieces would need at the end
        self._length = 0  # samples at 16 kHz since time zero
        self._shift = 0.0  # added to time stamps after a jump
        # The run: audio of one rate without a hole, which one resampler converts.
        self._run_start, self._run_samples, self._rate = 0.0, 0, SAMPLE_RATE
        self._resampler: av.AudioResampler | None = None
        self._waiting: list[np.ndarray] = []

    @property
    def clock(self) -> float:
        """The time in seconds at which the audio so far ends."""
        return self._run_start + self._run_samples / self._rate

    @property
    def is_complete(self) -> bool:
        """True if all samples before `last` are there."""
        return self._length >= self.last

    def add(self, samples: np.ndarray, rate: int, seconds: float | None) -> None:
        """Add mono samples (n,) of a frame that begins at `seconds`; None: where the audio so far ends."""
        if seconds is not None:
            samples = self._place(samples, rate, seconds)
        if rate != self._rate or not self.rates:
            self._end_run()
            self._rate = rate
            if rate not in self.rates:
                self.rates.append(rate)
        self._run_samples += len(samples)
        self._waiting.append(samples)
        if sum(map(len, self._waiting)) >= SECONDS_PER_BLOCK * rate:
            self._resample_waiting()

    def delay(self, seconds: float) -> None:
        """Add seconds to the time stamps of all further frames, which do not count what was lost before them."""
        self._shift += seconds

    def restart_timestamps(self) -> None:
        """Count the time stamps of all further frames from the end of the audio so far."""
        self._shift = self.clock

    def finish(self, end: float | None = None) -> np.ndarray:
        """Return the samples (n,) float32 from `first` to `last`, without the encoder's padding after `end`."""
        self._end_run()
        samples = np.frombuffer(self._kept, np.float32)
        if end is not None and not self.n_jumps:
            samples = samples[: max(0, _nearest_sample(end) - self.first)]
        return samples

    def _place(self, samples: np.ndarray, rate: int, seconds: float) -> np.ndarray:
        """Fill a hole before the frame; return the frame's samples that do not lie before time zero."""
        gap = seconds + self._shift - self.clock
        if not self.rates:  # nothing has been added so far
            if gap < 0 and -gap * rate < len(samples):
                return samples[round(-gap * rate) :]
            if 0 < gap <= self._longest_hole():
                self._add_silence(gap)
                return samples
        if -MAX_OVERLAP <= gap <= JITTER:
            return samples
        if -2 * MAX_OVERLAP <= gap < 0:  # the recorder's clock is slow
            return samples[round(-gap * rate) :]
        if 0 < gap <= self._longest_hole():
            self._add_silence(gap)
            self.silence += gap
        else:
            self._shift -= gap
            self.n_jumps += 1
        return samples

    def _longest_hole(self) -> float:
        """Return the seconds that a hole at this place may last."""
        # A file that has gone beyond its stated duration states a wrong one.
        known = self.declared and self.clock <= self.declared
        return min(MAX_HOLE, self.declared + 1 - self.clock if known and self.declared else MAX_HOLE)

    def _add_silence(self, seconds: float) -> None:
        end = self.clock + seconds
        self._end_run()
        self._run_start = end
        self._write(np.zeros(max(0, _nearest_sample(end) - self._length), np.float32))

    def _end_run(self) -> None:
        """Flush the resampler; the run's output gets the length of its input."""
        if self._run_samples:
            self._resample_waiting()
            self._run_start, self._run_samples = self.clock, 0
            flushed = self._resampler.resample(None) if self._resampler else []
            tail = np.concatenate([np.zeros(0, np.float32), *map(_samples_of, flushed)])
            missing = max(0, _nearest_sample(self._run_start) - self._length)
            self._write(tail[:missing])
        self._resampler = None

    def _resample_waiting(self) -> None:
        if not self._waiting:
            return
        samples, self._waiting = np.concatenate(self._waiting), []
        if self._rate == SAMPLE_RATE:
            self._write(samples)
            return
        self._resampler = self._resampler or av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = self._rate
        self._write(*(_samples_of(piece) for piece in self._resampler.resample(frame)))

    def _write(self, *pieces: np.ndarray) -> None:
        """Append samples at 16 kHz, as far as they are to be kept."""
        for piece in pieces:
            start = max(0, self.first - self._length)
            stop = min(len(piece), self.last - self._length)
            if start < stop:
                self._kept += piece[int(start) : int(stop)].tobytes()
            self._length += len(piece)


def _samples_of(frame: av.AudioFrame) -> np.ndarray:
    return frame.to_ndarray()[0]


def _nearest_sample(seconds: float) -> int:
    """Return the index at 16 kHz; `round` would take halves to the even one."""
    return math.floor(seconds * SAMPLE_RATE + 0.5)

"""Corruption of clips as in the track MER-NOISE: audio mixed in at 5 to 10 dB SNR, frames blurred by 1, 2 or 4.

The noise of a clip is drawn from its id and a seed, so it is the same in every run and for any set of clips. Decoder
processes import this module, so it does not import torch.
"""

import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import ClipError, MertoolError
from mertool.features import SAMPLE_RATE
from mertool.files import digest_json
from mertool.manifest import Clip, Manifest
from mertool.media_digest import media_digest

SNR_RANGE = (5.0, 10.0)  # dB, drawn uniformly
BLUR_FACTORS = (1, 2, 4)
BABBLE_VOICES = 5  # clips that speak at the same time
MAX_NOISE_SECONDS = 2 * 3600.0  # of a file, all of which is read for each clip
SILENCE_RANGE = 2.0**-20  # -120 dB of full scale: below the noise of any microphone, above rounding errors of decoders


@dataclass(frozen=True, kw_only=True)
class NoiseMix:
    """The noise of one clip: all of `files`, each from the fraction `start` of it on, mixed in at `snr` dB."""

    files: tuple[Path, ...]
    start: float
    snr: float


@dataclass(frozen=True, kw_only=True)
class NoiseCorruption:
    """Files of noise to draw from, their speakers (None: unknown), and how many of them are mixed into a clip."""

    files: tuple[Path, ...]
    speakers: tuple[str | None, ...]
    n_voices: int = 1
    seed: int = 0

    @classmethod
    def from_folder(cls, folder: Path, seed: int = 0) -> "NoiseCorruption":
        """Mix one file of the folder into each clip."""
        if not folder.is_dir():
            raise MertoolError(f"--noise {folder} is not a folder: give a folder of audio files, or babble")
        clips = Manifest.from_folder(folder).clips
        files = tuple(path for clip in clips if (path := clip.media_path("audio")) is not None)
        return cls(files=files, speakers=(None,) * len(files), seed=seed)

    @classmethod
    def babble(cls, manifest: Manifest, seed: int = 0) -> "NoiseCorruption":
        """Mix several other clips of the manifest into each clip, of other speakers if speakers are known."""
        speaker_of = {
            path: clip.speaker
            for clip in manifest.clips
            if (path := clip.media_path("audio")) is not None and path.is_file()
        }
        return cls(files=tuple(speaker_of), speakers=tuple(speaker_of.values()), n_voices=BABBLE_VOICES, seed=seed)

    def without(self, files: Collection[Path]) -> "NoiseCorruption":
        """Return the noise without some of its files. Raises MertoolError if fewer than two are left."""
        kept = [index for index, path in enumerate(self.files) if path not in files]
        if len(kept) < 2:
            raise MertoolError(f"too few files with audio for {self.n_voices} voices: give a folder of audio files")
        return replace(
            self,
            files=tuple(self.files[index] for index in kept),
            speakers=tuple(self.speakers[index] for index in kept),
        )

    def audio_settings(self, clip: Clip) -> dict[str, Any]:
        """Return the settings of `decode_audio` that corrupt a clip. A clip is never the noise of itself."""
        rng = self._rng(clip, 0)
        start, snr = float(rng.random()), float(rng.uniform(*SNR_RANGE))
        own = clip.media_path("audio")
        own = own and own.resolve()
        other_files = [index for index, path in enumerate(self.files) if path.resolve() != own]
        other_speakers = [
            index for index in other_files if clip.speaker is None or self.speakers[index] != clip.speaker
        ]
        if not other_files:
            raise MertoolError(f"--noise: clip '{clip.clip}' is the only file of noise: give other files")
        files = tuple(self.files[index] for index in rng.permutation(other_speakers or other_files)[: self.n_voices])
        return {"noise": NoiseMix(files=files, start=start, snr=snr)}

    def video_settings(self, clip: Clip) -> dict[str, Any]:
        """Return the settings of `decode_faces` that corrupt a clip."""
        return {"blur_factor": int(self._rng(clip, 1).choice(BLUR_FACTORS))}

    def to_json(self, modality: str) -> dict[str, Any]:
        """Return everything that features of this modality depend on: the content of the files, not their paths."""
        if modality == "video":
            return {"blurs": list(BLUR_FACTORS), "seed": self.seed}
        files = digest_json([[media_digest(path) for path in self.files], list(self.speakers)])[:32]
        return {"files": files, "voices": self.n_voices, "snr": list(SNR_RANGE), "seed": self.seed}

    def _rng(self, clip: Clip, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, zlib.crc32(clip.clip.encode())])


def add_noise(waveform: np.ndarray, mix: NoiseMix, read_audio: Callable[[Path], np.ndarray]) -> np.ndarray:
    """Mix noise into a waveform (n,); `read_audio` returns the samples of a file.

    All voices have the same power. The SNR is that of the mean powers over the whole clip, without constant offsets. A
    sum that would clip is scaled down. Raises ClipError silent for a waveform that has no power, and unreadable for
    noise that cannot be mixed in.
    """
    if is_silent(waveform):
        raise ClipError("silent")
    noise = np.zeros(len(waveform))
    for file in mix.files:
        try:
            samples = read_audio(file)
            check_noise(samples)
        except ClipError as error:
            raise ClipError("unreadable", f"noise cannot be mixed in: {file.name}: {error.message}") from error
        voice = _excerpt(samples, mix.start, len(waveform))
        noise += voice / voice.std()
    noise *= np.sqrt(np.var(waveform, dtype=np.float64) / 10 ** (mix.snr / 10) / np.mean(np.square(noise)))
    mixed = waveform + noise
    return (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)


def is_silent(samples: np.ndarray) -> bool:
    """Return whether samples (n,) are digital silence.

    By their range, not their level, because some recorders write silence with a constant offset.
    """
    return len(samples) == 0 or bool(np.ptp(samples) < SILENCE_RANGE)


def check_noise(samples: np.ndarray) -> None:
    """Raise ClipError for samples (n,) that are no noise: digital silence, NaN or infinite, or longer than allowed."""
    if not np.isfinite(samples).all():
        raise ClipError("not_finite", "it holds samples that are NaN or infinite")
    if is_silent(samples):
        raise ClipError("silent", "it is digital silence, or quieter")
    if len(samples) > MAX_NOISE_SECONDS * SAMPLE_RATE:
        raise ClipError("too_large", f"it is longer than {MAX_NOISE_SECONDS / 3600:g} hours: cut it")


def _excerpt(samples: np.ndarray, start: float, length: int) -> np.ndarray:
    """Return `length` samples from the fraction `start` on, without their mean; shorter audio is repeated.

    If that is a pause of the noise, the excerpt is instead the one around the largest change between two samples.
    """
    first = int(start * max(1, len(samples) - length))
    excerpt = np.resize(samples[first:], length)
    if is_silent(excerpt):
        middle = int(np.abs(np.diff(samples)).argmax()) + 1
        first = max(0, min(middle - length // 2, len(samples) - length))
        excerpt = samples[first : first + length]
    excerpt = excerpt.astype(np.float64)
    return excerpt - excerpt.mean()

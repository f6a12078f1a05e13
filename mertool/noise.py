"""Corruption of clips as in the track MER-NOISE: audio mixed in at 5 to 10 dB SNR, frames blurred by 1, 2 or 4.

The noise of a clip is drawn from its id and a seed, so it is the same in every run and for any set of clips. Decoder
processes import this module, so it does not import torch.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import ClipError, MertoolError
from mertool.files import digest_json
from mertool.manifest import Clip, Manifest
from mertool.media_digest import media_digest

SNR_RANGE = (5.0, 10.0)  # dB, drawn uniformly
BLUR_FACTORS = (1, 2, 4)
BABBLE_VOICES = 5  # clips that speak at the same time
SPARE_FILES = 4  # drawn beyond those that are mixed in, because some may hold no audio


@dataclass(frozen=True, kw_only=True)
class NoiseMix:
    """The noise of one clip: the first `n_voices` of `files` that hold audio, mixed in at `snr` dB.

    Each file is read from the fraction `start` of it on.
    """

    files: tuple[Path, ...]
    n_voices: int
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
        if len(speaker_of) < 2:
            raise MertoolError(f"{manifest.source} has too few files for babble: give a folder of audio files")
        return cls(files=tuple(speaker_of), speakers=tuple(speaker_of.values()), n_voices=BABBLE_VOICES, seed=seed)

    def audio_settings(self, clip: Clip) -> dict[str, Any]:
        """Return the settings of `decode_audio` that corrupt a clip."""
        rng = self._rng(clip, 0)
        start, snr = float(rng.random()), float(rng.uniform(*SNR_RANGE))
        other_files = [index for index, path in enumerate(self.files) if path != clip.media_path("audio")]
        other_speakers = [
            index for index in other_files if clip.speaker is None or self.speakers[index] != clip.speaker
        ]
        drawn = rng.permutation(other_speakers or other_files)[: self.n_voices + SPARE_FILES]
        files = tuple(self.files[index] for index in drawn)
        return {"noise": NoiseMix(files=files, n_voices=self.n_voices, start=start, snr=snr)}

    def video_settings(self, clip: Clip) -> dict[str, Any]:
        """Return the settings of `decode_faces` that corrupt a clip."""
        return {"blur_factor": int(self._rng(clip, 1).choice(BLUR_FACTORS))}

    def to_json(self, modality: str) -> dict[str, Any]:
        """Return everything that features of this modality depend on: the content of the files, not their paths."""
        if modality == "video":
            return {"blurs": list(BLUR_FACTORS), "seed": self.seed}
        sounds = digest_json([[media_digest(path) for path in self.files], list(self.speakers)])[:32]
        return {"sounds": sounds, "voices": self.n_voices, "snr": list(SNR_RANGE), "seed": self.seed}

    def _rng(self, clip: Clip, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, zlib.crc32(clip.clip.encode())])


def add_noise(waveform: np.ndarray, mix: NoiseMix, read_audio: Callable[[Path], np.ndarray]) -> np.ndarray:
    """Mix noise into a waveform (n,); `read_audio` returns the samples of a file.

    All voices have the same power. The SNR is that of the mean power over the whole clip. A sum that would clip is
    scaled down. A silent waveform stays silent. Raises ClipError unreadable if no file of the mix holds audio.
    """
    power = float(np.mean(np.square(waveform, dtype=np.float64)))
    if power == 0:
        return waveform
    noise = np.zeros(len(waveform))
    n_mixed = 0
    for file in mix.files:
        try:
            voice = _excerpt(read_audio(file), mix.start, len(waveform))
        except ClipError:
            continue
        voice_power = float(np.mean(np.square(voice)))
        if voice_power > 0:
            noise += voice / np.sqrt(voice_power)
            n_mixed += 1
        if n_mixed == mix.n_voices:
            break
    if not n_mixed:
        raise ClipError("unreadable", f"no noise to mix in: none of {len(mix.files)} files holds audio")
    noise *= np.sqrt(power / 10 ** (mix.snr / 10) / np.mean(np.square(noise)))
    mixed = waveform + noise
    return (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)


def _excerpt(samples: np.ndarray, start: float, length: int) -> np.ndarray:
    """Return `length` samples from the fraction `start` on; shorter audio is repeated."""
    first = int(start * max(1, len(samples) - length))
    return np.resize(samples[first:], length).astype(np.float64)

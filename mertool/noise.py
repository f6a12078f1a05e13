"""Noise as MER-NOISE has it: other sound at 5 to 10 dB SNR, the picture blurred by 1, 2 or 4.

What a clip gets is drawn by its id and a seed, so it is the same in every run. The decoder processes import
this module, so it imports no torch.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import ClipError, MertoolError
from mertool.files import digest_json, media_digest
from mertool.manifest import Clip, Manifest

SNR = (5.0, 10.0)  # dB, drawn evenly
BLURS = (1, 2, 4)
VOICES = 5  # clips that speak at once in babble
SPARE = 4  # files more than are needed: some may hold no sound


@dataclass(frozen=True)
class NoiseMix:
    """What is mixed into one clip: the first `count` of `files` that hold sound, from the share `start` of each on."""

    files: tuple[Path, ...]
    count: int
    start: float
    snr: float


@dataclass(frozen=True)
class NoiseCorruption:
    """Sounds to draw from, with their speakers where those are known; `voices` of them are heard at once."""

    files: tuple[Path, ...]
    speakers: tuple[str | None, ...]
    voices: int = 1
    seed: int = 0

    @classmethod
    def from_folder(cls, folder: Path, seed: int = 0) -> "NoiseCorruption":
        """One file of the folder for each clip."""
        if not folder.is_dir():
            raise MertoolError(f"--noise {folder} is not a folder: give a folder of sound files, or babble")
        files = tuple(clip.path for clip in Manifest.from_folder(folder).clips)
        return cls(files, (None,) * len(files), 1, seed)

    @classmethod
    def babble(cls, manifest: Manifest, seed: int = 0) -> "NoiseCorruption":
        """Several other clips of the manifest at once, of other speakers where speakers are known."""
        whole = {clip.path: clip.speaker for clip in manifest.clips if clip.path.is_file()}
        if len(whole) < 2:
            raise MertoolError(f"{manifest.source} has too few files for babble: give a folder of sound files")
        return cls(tuple(whole), tuple(whole.values()), VOICES, seed)

    def sound(self, clip: Clip) -> dict[str, Any]:
        """The setting `noise` of `decode_audio` for a clip."""
        rng = self._rng(clip, 0)
        start, snr = float(rng.random()), float(rng.uniform(*SNR))
        others = [n for n, path in enumerate(self.files) if path != clip.path]
        strangers = [n for n in others if clip.speaker is None or self.speakers[n] != clip.speaker]
        chosen = rng.permutation(strangers or others)[: self.voices + SPARE]
        return {"noise": NoiseMix(tuple(self.files[n] for n in chosen), self.voices, start, snr)}

    def picture(self, clip: Clip) -> dict[str, Any]:
        """The setting `blur` of `decode_faces` for a clip."""
        return {"blur": int(self._rng(clip, 1).choice(BLURS))}

    def to_json(self, modality: str) -> dict[str, Any]:
        """What features of this modality, made with this noise, depend on; paths do not count."""
        if modality == "video":
            return {"blurs": list(BLURS), "seed": self.seed}
        sounds = digest_json([[media_digest(path) for path in self.files], list(self.speakers)])[:32]
        return {"sounds": sounds, "voices": self.voices, "snr": list(SNR), "seed": self.seed}

    def _rng(self, clip: Clip, kind: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, kind, zlib.crc32(clip.clip.encode())])


def add_noise(wave: np.ndarray, mixture: NoiseMix, read: Callable[[Path], np.ndarray]) -> np.ndarray:
    """Sound (n,) with the mixture in it; `read` gives the samples of a file.

    Its SNR is of the mean power over the whole clip; where the sum would clip, all of it is made softer. Silence
    stays silence. Raises ClipError where no file of the mixture holds sound.
    """
    power = float(np.mean(np.square(wave, dtype=np.float64)))
    if power == 0:
        return wave
    noise = np.zeros(len(wave))
    heard = 0
    for file in mixture.files:
        try:
            voice = _excerpt(read(file), mixture.start, len(wave))
        except ClipError:
            continue
        loud = float(np.mean(np.square(voice)))
        if loud > 0:
            noise += voice / np.sqrt(loud)
            heard += 1
        if heard == mixture.count:
            break
    if not heard:
        raise ClipError("unreadable", f"no sound to mix in: {len(mixture.files)} files hold none")
    noise *= np.sqrt(power / 10 ** (mixture.snr / 10) / np.mean(np.square(noise)))
    mixed = wave + noise
    return (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)


def _excerpt(samples: np.ndarray, start: float, length: int) -> np.ndarray:
    """`length` samples from the share `start` on, over and over where there are fewer."""
    first = int(start * max(1, len(samples) - length))
    return np.resize(samples[first:], length).astype(np.float64)


def blurred(frames: Iterator[tuple[float, np.ndarray]], factor: int) -> Iterator[tuple[float, np.ndarray]]:
    """Frames (H, W, 3) made smaller by the factor and enlarged again; 1 leaves them as they are."""
    if factor == 1:
        yield from frames
        return
    from mertool.faces import resize  # it imports torch

    for moment, frame in frames:
        height, width = frame.shape[:2]
        small = resize(frame, max(1, height // factor), max(1, width // factor))
        yield moment, resize(small, height, width)

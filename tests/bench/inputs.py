"""Inputs of the benchmarks: talking-head clips, short audio files and transcripts, the same for the same seed.

Clips are 640x480 H.264 at 25 frames/s with stereo AAC at 44.1 kHz. Picture and sound are those of the demo's
clips, enlarged twice (a face is then about 215 pixels wide), looped to the length wanted and with the grain of
a camera, without which repeated pictures would cost next to nothing to decode.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from report import ROOT

DEMO_CLIPS = ROOT / "data" / "demo" / "clips"
FAULTY = {"spk01_014", "spk03_010", "spk04_001", "spk04_011"}  # no face or no sound, on purpose
WIDTH, HEIGHT, FRAME_RATE = 640, 480, 25
SAMPLE_RATE = 16_000
GRAIN = 4.0  # standard deviation, in grey levels


def make_clips(folder: Path, count: int, tiny: bool = False, seed: int = 0) -> list[Path]:
    """Clips of 1.5 to 7 s, 3.5 s in the mean; a quarter of that if `tiny`."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(1.5 + rng.gamma(2.0, 1.05, count), 1.5, 7.0)
    return write_clips(folder, lengths / 4 if tiny else lengths, rng)


def write_clips(folder: Path, lengths: np.ndarray, rng: np.random.Generator) -> list[Path]:
    """One clip of each of the lengths (seconds)."""
    folder.mkdir(parents=True)
    sources = sorted(path for path in DEMO_CLIPS.glob("*.mp4") if path.stem not in FAULTY)
    grain = rng.normal(0, GRAIN, (8, HEIGHT, WIDTH)).astype(np.int8)
    paths = [folder / f"clip{number:05d}.mp4" for number in range(len(lengths))]
    for number, (path, seconds) in enumerate(zip(paths, lengths, strict=True)):
        # A step that is prime to the number of sources takes another speaker each time.
        pictures, rate, sound = _read_source(sources[number * 11 % len(sources)])
        _write_clip(path, float(seconds), pictures, rate, sound, grain)
    return paths


def make_sounds(folder: Path, count: int, seconds: float = 0.5, seed: int = 0) -> list[Path]:
    """Short wav files, 16 kHz mono: noise under a slow envelope."""
    import soundfile

    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    samples = round(seconds * SAMPLE_RATE)
    envelope = np.sin(np.linspace(0, np.pi, samples))
    paths = [folder / f"sound{number:02d}.wav" for number in range(count)]
    for path in paths:
        soundfile.write(path, 0.2 * envelope * rng.normal(0, 1, samples).clip(-4, 4), SAMPLE_RATE)
    return paths


def make_texts(words: list[str], count: int, seed: int = 0) -> list[str]:
    """Transcripts of 3 to 40 of the words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, rng.integers(3, 41))) for _ in range(count)]


def _read_source(path: Path) -> tuple[list[av.VideoFrame], float, np.ndarray]:
    """Pictures, their rate and the sound (n,) int16 at 16 kHz of a demo clip."""
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate or 15)
        pictures = list(container.decode(video=0))
    with av.open(str(path)) as container:
        sound = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
    return pictures, rate, (sound.clip(-1, 1) * 32767).astype(np.int16)


def _write_clip(
    path: Path, seconds: float, pictures: list[av.VideoFrame], rate: float, sound: np.ndarray, grain: np.ndarray
) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "veryfast", "crf": "23"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=44_100, layout="stereo")
        for number in range(round(seconds * FRAME_RATE)):
            picture = pictures[int(number / FRAME_RATE * rate) % len(pictures)]
            container.mux(video.encode(_enlarge(picture, grain[number % len(grain)])))
        container.mux(video.encode(None))
        for frame in _stereo(np.resize(sound, round(seconds * SAMPLE_RATE))):
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def _enlarge(picture: av.VideoFrame, grain: np.ndarray) -> av.VideoFrame:
    planes = picture.reformat(WIDTH, HEIGHT, "yuv420p", interpolation="BICUBIC").to_ndarray()
    planes[:HEIGHT] = np.clip(planes[:HEIGHT].astype(np.int16) + grain, 0, 255)  # brightness comes first
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def _stereo(sound: np.ndarray) -> list[av.AudioFrame]:
    frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=44_100, frame_size=1024)
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    for number, piece in enumerate(frames):  # the resampler's own stamp of the last piece is not always in order
        piece.pts, piece.time_base = number * 1024, Fraction(1, 44_100)
    return frames

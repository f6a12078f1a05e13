"""Make the demo clips: a photographed face, a synthetic voice and a transcript for each of six emotions.

    python make_clips.py OUTPUT_FOLDER [--seed 7]

Needs Python 3.11, numpy 2, scipy 1.17, pillow, av 18 (PyAV), scikit-image 0.26 and the program espeak-ng
1.51. The photo is NASA's public-domain portrait of Eileen Collins, shipped with scikit-image as
`skimage.data.astronaut()`.

The face is warped by expression (thin-plate spline over brows, eyes, lips and jaw), the voice gets the pitch,
rate, loudness and brightness of the emotion, and the words come from sentence patterns. Each of the three
errs on its own in a fixed share of the clips (`ERRORS`), but never all three at once: fusing them pays.
"""

import argparse
import csv
import subprocess
import tempfile
import zlib
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from xml.sax.saxutils import escape

import av
import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage, signal
from scipy.io import wavfile
from skimage import data

EMOTIONS = ("neutral", "angry", "happy", "sad", "worried", "surprise")
COUNTS = {"train": (10, 9, 10, 9, 8, 8), "unlabelled": (2, 2, 2, 2, 2, 2), "test": (5, 4, 5, 4, 4, 4)}
# Share of the clips whose voice, face or words show another emotion.
ERRORS = {"heard": 0.20, "seen": 0.25, "said": 0.30}
PLAUSIBLE = {  # what an emotion is mistaken for
    "neutral": ("sad", "happy", "worried"),
    "angry": ("neutral", "surprise", "worried"),
    "happy": ("neutral", "surprise"),
    "sad": ("neutral", "neutral", "worried"),
    "worried": ("neutral", "sad", "surprise"),
    "surprise": ("happy", "neutral", "worried"),
}
WIDTH, HEIGHT, FPS, RATE = 320, 240, 15, 16000


# ---------------------------------------------------------------- speakers


@dataclass(frozen=True)
class Speaker:
    """A voice and a look: `size` stretches the face, `gains` colours it, `jaw` widens it (photo pixels)."""

    name: str
    voice: str
    pitch: int
    wpm: int
    mirror: bool
    size: tuple[float, float]
    gains: tuple[float, float, float]
    gamma: float
    saturation: float
    backdrop: tuple[int, int, int]
    jaw: float


# fmt: off
SPEAKERS = tuple(Speaker(*row) for row in (
    ("spk01", "en-us+f2", 52, 155, False, (1.22, 1.22), (1, 1, 1), 1, 1, (150, 150, 165), 0.0),
    ("spk02", "en-gb+m3", 40, 150, True, (1.25, 1.22), (1.03, 0.97, 0.9), 1.1, 0.8, (95, 120, 105), 2.0),
    ("spk03", "en-us+m1", 45, 165, False, (1.2, 1.24), (0.96, 0.98, 1.05), 0.94, 0.7, (60, 75, 110), -1.5),
    ("spk04", "en-gb-scotland+f4", 48, 160, True, (1.2, 1.24), (1.04, 1, .95), 0.9, 1.1, (185, 165, 140), -2),
    ("spk05", "en-gb+f1", 55, 145, False, (1.26, 1.24), (0.95, 0.93, 0.95), 1.15, 1.1, (120, 80, 75), 1.5),
    ("spk06", "en-us+m7", 35, 158, True, (1.23, 1.21), (1.0, 0.95, 0.98), 1.03, 0.45, (200, 205, 210), 2.5),
    ("spk07", "en-gb-x-rp+m4", 42, 150, False, (1.24, 1.23), (1.03, 0.98, 0.93), 1.06, 0.9, (90, 95, 90), 2),
    ("spk08", "en-us+f5", 50, 160, True, (1.21, 1.22), (0.98, 1.0, 1.03), 0.96, 0.95, (160, 150, 185), -1.0),
))
# fmt: on


# ---------------------------------------------------------------- words

TOPICS = (
    "the letter",
    "the meeting",
    "my sister",
    "the train",
    "this house",
    "the phone",
    "our dinner",
    "the doctor",
    "the garden",
    "your brother",
    "the money",
    "the dog",
    "the door",
    "the party",
    "my old car",
    "the school",
)
SENTENCES = {
    "neutral": (
        "I read about {} in the paper today.",
        "You can find {} on the second page.",
        "We talked about {} on Monday.",
        "As far as I know, {} is at the usual place.",
        "Please write {} on the list for Monday.",
        "The paper says that {} is next to the office.",
        "So {} comes first on the list today.",
    ),
    "angry": (
        "How dare you talk about {} like that!",
        "I told you to leave {} alone!",
        "Stop it, I am sick of {}!",
        "You never listen, leave {} alone!",
        "This is your fault, you ruined {} again!",
        "Enough, do not dare to touch {}!",
        "I hate it when you lie about {}!",
    ),
    "happy": (
        "I love {}, this is wonderful!",
        "We had a great day with {}!",
        "I am so glad about {}!",
        "What a lovely day, thank you for {}!",
        "It is wonderful, {} makes me smile!",
        "Great news, {} is so much fun!",
        "I am happy, I love the way you talk about {}!",
    ),
    "sad": (
        "I miss {} so much.",
        "We lost {} and I feel so alone.",
        "I cried when I thought about {}.",
        "Nothing is left, even {} is gone.",
        "It hurts that {} is gone for ever.",
        "I am sorry, I lost {} last year.",
        "I feel empty, I will miss {}.",
    ),
    "worried": (
        "I am afraid that {} is not safe.",
        "What if something is wrong with {}?",
        "I hope nothing happens to {}.",
        "Are you sure that {} is safe?",
        "I am nervous about {}, what if it is late?",
        "Something is wrong, I fear for {}.",
        "I could not sleep, I am afraid for {}.",
    ),
    "surprise": (
        "Wow, I did not expect {}!",
        "Really, is that {}?",
        "Oh my, look at {}!",
        "I can not believe it, {} is here!",
        "Wait, {} came all by itself?",
        "No way, you never told me about {}!",
        "Wow, really, how did {} get here?",
    ),
}


# ---------------------------------------------------------------- the plan: which clip shows what


@dataclass(frozen=True)
class Clip:
    """What one clip is to show. `fault` is one of "", no-face, no-audio, no-video, broken, no-text."""

    label: str
    split: str
    speaker: Speaker
    heard: str
    seen: str
    said: str
    fault: str = ""
    name: str = ""
    text: str = ""

    @property
    def path(self) -> str:
        """Path of the file, relative to the manifest."""
        return f"{'test' if self.split == 'test' else 'clips'}/{self.name}.mp4"

    @property
    def right_cues(self) -> int:
        """How many of the cues that are there show the label."""
        lost = {"no-face": ["seen"], "no-video": ["seen"], "no-audio": ["heard"], "no-text": ["said"]}
        return sum(getattr(self, cue) == self.label for cue in ERRORS if cue not in lost.get(self.fault, []))


FAULTS = {
    "train": ("no-face", "no-face", "no-audio", "no-text", "no-text"),
    "unlabelled": ("no-face",),
    "test": ("no-face", "no-video", "broken", "no-text"),
}


def plan_split(split: str, rng: np.random.Generator) -> list[Clip]:
    """Clips of one split with exact shares of erring cues, drawn until each clip keeps one right cue."""
    labels = [emotion for emotion, count in zip(EMOTIONS, COUNTS[split], strict=True) for _ in range(count)]
    cast = SPEAKERS[:6]
    if split == "test":  # nearly half of the test clips are by speakers who were never heard in training
        cast = SPEAKERS[:6] + SPEAKERS[6:] * 3
    speakers = [cast[i % len(cast)] for i in range(len(labels))]
    faults = FAULTS[split] + ("",) * (len(labels) - len(FAULTS[split]))
    while True:
        speakers, faults = list(rng.permutation(np.array(speakers, object))), rng.permutation(faults)
        cues = {cue: draw_cue(labels, share, rng) for cue, share in ERRORS.items()}
        clips = [
            Clip(label, split, speakers[i], **{cue: cues[cue][i] for cue in ERRORS}, fault=str(faults[i]))
            for i, label in enumerate(labels)
        ]
        if all(clip.right_cues for clip in clips):
            return clips


def draw_cue(labels: list[str], share: float, rng: np.random.Generator) -> list[str]:
    """The emotion that a cue shows in each clip: the label, but for `share` of them a plausible other one."""
    wrong = rng.permutation(len(labels)) < round(share * len(labels))
    return [mistake(label, rng) if bad else label for label, bad in zip(labels, wrong, strict=True)]


def mistake(label: str, rng: np.random.Generator) -> str:
    """Another emotion: mostly a plausible one, now and then any."""
    others = [e for e in (PLAUSIBLE[label] if rng.random() < 0.8 else EMOTIONS) if e != label]
    return str(rng.choice(others))


def make_plan(rng: np.random.Generator) -> list[Clip]:
    """All clips with text and a number per speaker, in an order that does not tell the label."""
    clips = [clip for split in COUNTS for clip in plan_split(split, rng)]
    numbers, named = dict.fromkeys((s.name for s in SPEAKERS), 0), []
    foreign = True  # one file name with a space and Chinese characters, as people have them
    for i in rng.permutation(len(clips)):
        clip = clips[i]
        numbers[clip.speaker.name] += 1
        name = f"{clip.speaker.name}_{numbers[clip.speaker.name]:03d}"
        if foreign and clip.split == "test" and clip.speaker.name == "spk08" and not clip.fault:
            name, foreign = "spk08_测试 clip", False
        named.append(replace(clip, name=name, text=write_text(clip.said, rng)))
    return sorted(named, key=lambda clip: (clip.split == "test", clip.name))


def write_text(emotion: str, rng: np.random.Generator) -> str:
    """A sentence of the emotion about something or someone; the topics are shared by all emotions."""
    text = str(rng.choice(SENTENCES[emotion])).format(rng.choice(TOPICS))
    return text[0].upper() + text[1:]


# ---------------------------------------------------------------- the voice


@dataclass(frozen=True)
class Prosody:
    """How an emotion sounds: pitch (steps of espeak's) and rate (a factor) against the speaker's own, pitch
    range (%), gain, brightness (dB), depth of the tremor, share of breath, and how hard the voice is driven.
    """

    pitch: float
    range: float
    rate: float
    gain: float
    bright: float
    tremor: float
    breath: float
    drive: float


PROSODY = {
    "neutral": Prosody(0, 70, 1.00, 0.40, 0, 0.0, 0.0, 1.0),
    "angry": Prosody(2, 110, 1.15, 0.85, 12, 0.0, 0.0, 6.0),
    "happy": Prosody(20, 170, 1.05, 0.60, 6, 0.0, 0.0, 1.5),
    "sad": Prosody(-14, 30, 0.75, 0.14, -12, 0.0, 0.15, 1.0),
    "worried": Prosody(10, 50, 1.12, 0.25, -3, 0.8, 0.5, 1.0),
    "surprise": Prosody(38, 240, 0.88, 0.75, -2, 0.0, 0.1, 2.5),
}


def vary_prosody(base: Prosody, rng: np.random.Generator) -> Prosody:
    """The same prosody as another day would have it."""
    return Prosody(
        pitch=base.pitch + rng.normal(0, 4),
        range=base.range * rng.uniform(0.75, 1.3),
        rate=base.rate * rng.uniform(0.93, 1.08),
        gain=base.gain * rng.uniform(0.7, 1.4),
        bright=base.bright + rng.normal(0, 1.5),
        tremor=base.tremor * rng.uniform(0.6, 1.2),
        breath=base.breath * rng.uniform(0.6, 1.3),
        drive=base.drive * rng.uniform(0.8, 1.2),
    )


def say(text: str, speaker: Speaker, prosody: Prosody) -> np.ndarray:
    """Speech of espeak-ng as float samples at `RATE`, peak 1."""
    ssml = f'<speak><prosody range="{prosody.range:.0f}%">{escape(text)}</prosody></speak>'
    pitch, wpm = np.clip(speaker.pitch + prosody.pitch, 0, 99), speaker.wpm * prosody.rate
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        options = ["-v", speaker.voice, "-p", f"{pitch:.0f}", "-s", f"{wpm:.0f}", "-w", str(wav)]
        subprocess.run(["espeak-ng", "-m", "-z", *options, ssml], check=True)
        rate, samples = wavfile.read(wav)
    speech = signal.resample_poly(samples.astype(np.float64), RATE, rate)
    return speech / max(np.abs(speech).max(), 1e-9)


def colour(speech: np.ndarray, prosody: Prosody, rng: np.random.Generator) -> np.ndarray:
    """Breath, brightness (a shelf above 1.2 kHz), effort (soft clipping), tremor (6 Hz) and loudness."""
    envelope = ndimage.uniform_filter1d(np.abs(speech), RATE // 50)
    speech = (1 - 0.5 * prosody.breath) * speech + prosody.breath * envelope * rng.normal(size=len(speech))
    hertz = np.fft.rfftfreq(len(speech), 1 / RATE)
    shelf = 10 ** (prosody.bright / 20 / (1 + np.exp(-(hertz - 1200) / 250)))
    speech = np.fft.irfft(np.fft.rfft(speech) * shelf, len(speech))
    speech = np.tanh(prosody.drive * speech / np.abs(speech).max()) / np.tanh(prosody.drive)
    seconds = np.arange(len(speech)) / RATE
    return prosody.gain * speech * (1 - prosody.tremor * (0.5 + 0.5 * np.sin(2 * np.pi * 6 * seconds)))


def make_sound(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """The sound of a clip, 2 to 4 s at `RATE`: a pause, the sentence, a pause, and the noise of a room."""
    prosody = vary_prosody(PROSODY[clip.heard], rng)
    speech = colour(say(clip.text, clip.speaker, prosody), prosody, rng)
    lead, tail = (int(RATE * seconds) for seconds in rng.uniform(0.1, 0.4, 2))
    length = int(np.clip(lead + len(speech) + tail, 2 * RATE, 4 * RATE))
    sound = np.zeros(length)
    sound[lead : lead + len(speech)] = speech[: length - lead]
    hiss = ndimage.gaussian_filter1d(rng.normal(size=length), 2)
    sound += rng.uniform(0.005, 0.009) * hiss / hiss.std()
    return np.clip(sound, -0.98, 0.98).astype(np.float32)


def loudness(sound: np.ndarray, frames: int) -> np.ndarray:
    """How loud each video frame is, 0 to 1 of the clip's own peak: it opens the mouth."""
    parts = np.array_split(np.abs(sound), frames)
    level = ndimage.gaussian_filter1d(np.array([part.mean() for part in parts]), 0.6)
    return np.clip((level - level.min()) / max(np.ptp(level), 1e-9), 0, 1)


# ---------------------------------------------------------------- the face


@dataclass(frozen=True)
class Face:
    """An expression, in photo pixels from the portrait's smile: up, out and open are positive."""

    brow_in: float = 0.0  # inner brow up
    brow_out: float = 0.0  # outer brow up
    frown: float = 0.0  # brows towards each other
    lids: float = 0.0  # eyes open
    corner: float = 0.0  # mouth corners up
    wide: float = 0.0  # mouth corners out
    gap: float = 0.0  # lips apart (the smile has 6.6 pixels of teeth)
    jaw: float = 0.0  # chin down


FACES = {
    "neutral": Face(corner=-4.0, wide=-3.5, gap=-5.8, jaw=-1.0),
    "angry": Face(brow_in=-6.5, brow_out=1.5, frown=4, lids=-1.4, corner=-9, wide=-1.5, gap=-3.6, jaw=1.5),
    "happy": Face(brow_in=0.5, brow_out=1.0, lids=-1.2, corner=3.0, wide=3.0, gap=1.2, jaw=1.0),
    "sad": Face(brow_in=4.5, brow_out=-3.0, frown=1.0, lids=-2.4, corner=-9.5, wide=-4.0, gap=-6.4, jaw=-1.5),
    "worried": Face(brow_in=6.0, brow_out=0.0, frown=3.5, lids=2.2, corner=-6.0, wide=2.0, gap=-3.8, jaw=1.0),
    "surprise": Face(brow_in=6.5, brow_out=6.5, frown=-1, lids=2.7, corner=-4, wide=-6, gap=3.5, jaw=6.5),
}
UNITS = tuple(Face.__dataclass_fields__)
CENTRE = np.array((224.0, 112.0))  # between eyes and mouth: the head turns and grows about it

# Points of the photo (x, y) and how each moves per pixel of a unit of `Face`: (unit, dx, dy).
POINTS = {
    "brow left out": ((190, 91), [("brow_out", 0, -1)]),
    "brow left mid": ((199, 88.5), [("brow_out", 0, -0.6), ("brow_in", 0, -0.5), ("frown", 0.5, 0)]),
    "brow left in": ((213, 92.5), [("brow_in", 0, -1), ("frown", 1, 0)]),
    "brow right in": ((239, 93), [("brow_in", 0, -1), ("frown", -1, 0)]),
    "brow right mid": ((251, 92), [("brow_out", 0, -0.6), ("brow_in", 0, -0.5), ("frown", -0.5, 0)]),
    "brow right out": ((264, 95.5), [("brow_out", 0, -1)]),
    "lid left top": ((203, 97), [("lids", 0, -1), ("brow_in", 0, -0.1)]),
    "lid left low": ((203, 104.6), [("lids", 0, 0.5)]),
    "lid right top": ((248, 99.5), [("lids", 0, -1), ("brow_in", 0, -0.1)]),
    "lid right low": ((248, 107.2), [("lids", 0, 0.5)]),
    "eye left out": ((193, 101), []),
    "eye left in": ((211, 103), []),
    "eye right in": ((238, 105), []),
    "eye right out": ((258, 104), []),
    "nose": ((224.5, 127), []),
    "nostril left": ((215, 129), []),
    "nostril right": ((234, 130.5), []),
    "cheek left": ((192, 122), [("corner", 0, -0.25)]),
    "cheek right": ((258, 124), [("corner", 0, -0.25)]),
    "lip up": ((224, 139), [("corner", 0, -0.15), ("gap", 0, -0.1)]),
    "lip up low": ((224, 144.2), [("corner", 0, -0.15), ("gap", 0, -0.25)]),
    "lip up left": ((213, 143), [("corner", 0, -0.4), ("wide", -0.5, 0), ("gap", 0, -0.15)]),
    "lip up right": ((235, 143), [("corner", 0, -0.4), ("wide", 0.5, 0), ("gap", 0, -0.15)]),
    "teeth": ((223, 148.6), [("gap", 0, 0.15), ("corner", 0, -0.15), ("jaw", 0, 0.05)]),
    "lip low top": ((223, 150), [("gap", 0, 0.65), ("jaw", 0, 0.85), ("corner", 0, -0.15)]),
    "lip low left": ((211, 147), [("gap", 0, 0.4), ("corner", 0, -0.4), ("wide", -0.5, 0), ("jaw", 0, 0.5)]),
    "lip low right": ((235, 147), [("gap", 0, 0.45), ("corner", 0, -0.4), ("wide", 0.5, 0), ("jaw", 0, 0.5)]),
    "lip low": ((223, 154.5), [("gap", 0, 0.6), ("jaw", 0, 0.95), ("corner", 0, -0.15)]),
    "corner left": ((203, 140), [("corner", 0, -1), ("wide", -1, 0), ("jaw", 0, 0.25)]),
    "corner right": ((244.5, 141), [("corner", 0, -1), ("wide", 1, 0), ("jaw", 0, 0.25)]),
    "chin": ((222, 172), [("jaw", 0, 0.9)]),
    "chin left": ((202, 167), [("jaw", 0, 0.7)]),
    "chin right": ((244, 169), [("jaw", 0, 0.7)]),
}
LIP_UP = (
    (203, 140),
    (207, 141.5),
    (215, 143),
    (220, 144.2),
    (225, 144.3),
    (230, 144),
    (236, 142.3),
    (245, 140.5),
)
LIP_LOW = (
    (203, 140.5),
    (206, 143),
    (210, 146.5),
    (215, 149),
    (224, 150.2),
    (231, 149),
    (236, 147),
    (240, 144.6),
    (245, 141),
)
JAW_LEFT, JAW_RIGHT = ((184, 140), (190, 157)), ((266, 142), (258, 160))
STILL = (
    (150, 60),
    (160, 30),
    (205, 14),
    (255, 18),
    (296, 60),
    (300, 95),
    (152, 95),
    (170, 118),
    (278, 132),
    (190, 76),
    (222, 77),
    (262, 82),
    (180, 100),
    (272, 108),
    (187, 178),
    (255, 178),
    (130, 190),
    (300, 200),
    (222, 195),
    (110, 10),
    (340, 10),
    (100, 120),
    (350, 120),
)
OUTLINE = (  # of head and suit, in quarter pixels from (90, 0)
    (90, 1600),
    (98, 760),
    (135, 728),
    (172, 660),
    (230, 617),
    (330, 597),
    (374, 598),
    (370, 526),
    (336, 514),
    (324, 480),
    (287, 440),
    (264, 400),
    (257, 300),
    (265, 242),
    (302, 193),
    (400, 138),
    (470, 88),
    (570, 65),
    (640, 75),
    (738, 122),
    (797, 182),
    (827, 250),
    (844, 330),
    (832, 420),
    (787, 488),
    (752, 518),
    (742, 538),
    (709, 546),
    (689, 620),
    (664, 697),
    (720, 722),
    (780, 782),
    (880, 900),
    (940, 1600),
)


def portrait() -> np.ndarray:
    """The photo, colours 0 to 255, with an alpha (0 to 1) for head and suit: float (420, 420, 4)."""
    photo = data.astronaut()[:420, :420].astype(np.float64)
    mask = Image.new("L", (1680, 1680))
    ImageDraw.Draw(mask).polygon([(x + 360, y) for x, y in OUTLINE], fill=255)
    alpha = ndimage.gaussian_filter(np.asarray(mask.resize((420, 420), Image.Resampling.BOX)) / 255.0, 1.2)
    return np.dstack([photo, alpha])


def close_mouth(photo: np.ndarray) -> np.ndarray:
    """The photo with lips instead of teeth: between the lips the colours of both run into a darker seam."""
    closed = photo.copy()
    columns = np.arange(203, 246)
    tops = np.interp(columns, *np.transpose(LIP_UP)) - 0.5
    lows = np.interp(columns, *np.transpose(LIP_LOW)) + 1.0
    for x, top, low in zip(columns, tops, lows, strict=True):
        rows = np.arange(int(top), int(np.ceil(low)) + 1)
        share = np.clip((rows - top) / (low - top), 0, 1)[:, None]
        seam = 1 - np.array((0.35, 0.5, 0.5)) * np.exp(-(((share - 0.5) / 0.22) ** 2))
        upper, lower = photo[int(top) - 1, x, :3], photo[int(np.ceil(low)) + 1, x, :3]
        closed[rows, x, :3] = ((1 - share) * upper + share * lower) * seam
    closed[138:154, 200:248, :3] = ndimage.gaussian_filter(closed[138:154, 200:248, :3], (0.4, 0.8, 0))
    return closed


def grade(photo: np.ndarray, speaker: Speaker) -> np.ndarray:
    """The photo in the speaker's colours."""
    colours = 255 * (np.clip(photo[..., :3], 0, 255) / 255) ** speaker.gamma
    grey = colours.mean(axis=2, keepdims=True)
    colours = (grey + speaker.saturation * (colours - grey)) * speaker.gains
    return np.dstack([colours, photo[..., 3]])


def backdrop(speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """A wall behind the speaker: a colour, a slope of light and soft blotches, (height, width, 3)."""
    blotches = ndimage.gaussian_filter(rng.normal(size=(HEIGHT, WIDTH)), 14)
    slope = np.linspace(-18, 18, WIDTH)[None, :] * rng.uniform(-1, 1)
    light = 12 * blotches / blotches.std() + slope
    return np.array(speaker.backdrop) + light[..., None] + rng.normal(0, 2, size=(HEIGHT, WIDTH, 1))


def move_points(face: Face, jaw: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the points are in the photo and where they go, both (n, 2)."""
    here, there = [], []
    for point, moves in POINTS.values():
        shift = sum((getattr(face, unit) * np.array((dx, dy)) for unit, dx, dy in moves), np.zeros(2))
        here.append(np.array(point, float))
        there.append(here[-1] + shift)
    up, teeth, low = (there[list(POINTS).index(name)] for name in ("lip up low", "teeth", "lip low top"))
    teeth[1] = min(teeth[1], low[1] - 0.25 * (low[1] - up[1]))  # the teeth stay between the lips
    for points, side in ((JAW_LEFT, -1), (JAW_RIGHT, 1)):
        here += [np.array(point, float) for point in points]
        there += [np.array(point, float) + (side * jaw, 0.4 * face.jaw) for point in points]
    here += [np.array(point, float) for point in STILL]
    there += [np.array(point, float) for point in STILL]
    return np.array(here), np.array(there)


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The thin-plate spline's r^2 log r between two sets of points."""
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    return squared * np.log(squared + 1e-9) / 2


def unwarp(here: np.ndarray, there: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Where the photo has what is seen at the points `at` (n, 2) once `here` has moved to `there`."""
    n = len(there)
    system = np.zeros((n + 3, n + 3))
    system[:n, :n] = kernel(there, there) + 0.5 * np.eye(n)  # a little give keeps the skin smooth
    system[:n, n:] = np.c_[np.ones(n), there]
    system[n:, :n] = system[:n, n:].T
    weights = np.linalg.solve(system, np.r_[here - there, np.zeros((3, 2))])
    return at + kernel(at, there) @ weights[:n] + np.c_[np.ones(len(at)), at] @ weights[n:]


def throat(there: np.ndarray) -> np.ndarray:
    """The dark of the mouth, (420, 420), 0 to 1: the gap between the teeth and the lower lip."""
    at = dict(zip(POINTS, there, strict=False))
    teeth, low = at["teeth"] + (0, 0.6), at["lip low top"]
    if low[1] - teeth[1] < 0.8:
        return np.zeros((420, 420))
    image = Image.new("L", (1680, 1680))
    left, right = at["lip low left"], at["lip low right"]
    upper = [left + (0, -1), (left + teeth) / 2 + (0, 0.3), teeth]
    upper += [(right + teeth) / 2 + (0, 0.3), right + (0, -1)]
    lower = [(right + low) / 2 + (1.2, 0.8), low, (left + low) / 2 + (-1.2, 0.8)]
    ImageDraw.Draw(image).polygon([tuple(4 * point) for point in upper + lower], fill=255)
    return ndimage.gaussian_filter(np.asarray(image.resize((420, 420), Image.Resampling.BOX)) / 255.0, 0.5)


def photo_plane(speaker: Speaker, zoom: float, turn: float, shift: tuple[float, float]) -> np.ndarray:
    """Photo coordinates of the frame's pixels, (height, width, 2), before the expression moves anything."""
    x, y = np.meshgrid(np.arange(WIDTH) - WIDTH / 2 - shift[0], np.arange(HEIGHT) - HEIGHT / 2 - shift[1])
    if speaker.mirror:
        x = -x
    x, y = np.cos(turn) * x + np.sin(turn) * y, -np.sin(turn) * x + np.cos(turn) * y
    return np.stack([x / (speaker.size[0] * zoom), y / (speaker.size[1] * zoom)], axis=-1) + CENTRE


def sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The values of a one-channel image between its pixels."""
    return ndimage.map_coordinates(image, [y, x], order=1, mode="nearest")


def render(photos: np.ndarray, wall: np.ndarray, face: Face, plane: np.ndarray, jaw: float) -> np.ndarray:
    """One frame, uint8 (height, width, 3), from the photos with teeth and with closed lips.

    The warp is solved on every eighth pixel and filled in between, which is fast and as smooth.
    """
    here, there = move_points(face, jaw)
    coarse = plane[::8, ::8]
    offset = (unwarp(here, there, coarse.reshape(-1, 2)) - coarse.reshape(-1, 2)).reshape(coarse.shape)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] / 8.0
    source = plane.copy()
    for axis in range(2):
        source[..., axis] += sample(offset[..., axis], columns, rows)
    closed = np.clip((-2.5 - face.gap) / 2.0, 0, 1)  # teeth vanish as the lips meet
    photo = (1 - closed) * photos[0] + closed * photos[1]
    layers = [sample(photo[..., c], source[..., 0], source[..., 1]) for c in range(4)]
    seen = np.stack(layers[:3], axis=-1)
    dark = sample(throat(there), plane[..., 0], plane[..., 1])[..., None]
    seen = seen * (1 - 0.9 * dark) + np.array((58, 22, 22)) * 0.9 * dark
    frame = wall + (seen - wall) * layers[3][..., None]
    return np.clip(frame, 0, 255).astype(np.uint8)


def between(unit: str, peak: Face, share: float) -> float:
    """A unit on its way from the calm face (`share` 0) to the peak (1)."""
    calm = getattr(FACES["neutral"], unit)
    return calm + share * (getattr(peak, unit) - calm)


def vary_face(base: Face, rng: np.random.Generator) -> Face:
    """The same expression as another day would have it: stronger or weaker, every unit a little off."""
    strength = rng.uniform(0.85, 1.2)
    spread = dict.fromkeys(UNITS, 0.6) | {"lids": 0.3, "gap": 0.5}
    return Face(**{unit: between(unit, base, strength) + rng.normal(0, spread[unit]) for unit in UNITS})


def at_moment(peak: Face, onset: float, talk: float, blink: float) -> Face:
    """The expression between calm (`onset` 0) and its peak (1), with the mouth of someone who talks."""
    now = {unit: between(unit, peak, onset) for unit in UNITS}
    now["gap"] += 2.5 * talk
    now["jaw"] += 4.0 * talk
    now["lids"] = max(now["lids"] - 3.5 * blink, -3.9)  # lids and lips meet, they do not cross
    now["gap"] = max(now["gap"], -5.8 - 0.9 * now["jaw"])
    return Face(**now)


def make_frames(clip: Clip, sound: np.ndarray, photo: np.ndarray, rng: np.random.Generator) -> list:
    """The pictures of a clip: the head drifts, turns and grows a little while the expression comes up."""
    count = round(len(sound) / RATE * FPS)
    wall = backdrop(clip.speaker, rng)
    light = rng.uniform(0.9, 1.1)
    photos = np.stack([grade(photo, clip.speaker), grade(close_mouth(photo), clip.speaker)])
    photos[..., :3] *= light
    peak, talk = vary_face(FACES[clip.seen], rng), loudness(sound, count)
    start, blink_at = rng.uniform(0.0, 0.5), rng.uniform(0.3, 2.0)
    zoom, turn, phase = rng.uniform(0.95, 1.06), rng.normal(0, 0.025), rng.uniform(0, 6.28, 4)
    centre = np.array((rng.uniform(-14, 14), rng.uniform(-4, 10)))
    if clip.fault == "no-face":  # out of the picture: only the wall and perhaps a shoulder are seen
        centre += (0, 400) if rng.random() < 0.5 else (-190, 90)
    frames = []
    for seconds in np.arange(count) / FPS:
        onset = 0.25 + 0.75 / (1 + np.exp(-(seconds - start - 0.3) / 0.1))
        onset *= 1 + 0.06 * np.sin(3 * seconds + phase[0])
        blink = np.exp(-(((seconds - blink_at) / 0.07) ** 2))
        face = at_moment(peak, onset, talk[len(frames)], blink)
        drift = centre + 4 * np.sin(np.array((1.1, 0.8)) * seconds + phase[1:3])
        grown = zoom * (1 + 0.015 * np.sin(0.9 * seconds + phase[3]))
        plane = photo_plane(clip.speaker, grown, turn + 0.03 * np.sin(1.4 * seconds + phase[0]), tuple(drift))
        frames.append(render(photos, wall * light, face, plane, clip.speaker.jaw))
    return frames


# ---------------------------------------------------------------- files


def write_clip(path: Path, frames: list[np.ndarray] | None, sound: np.ndarray | None) -> None:
    """Write an .mp4 with H.264 pictures and AAC sound; None leaves a stream out."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as file:
        video = audio = None
        if frames is not None:
            options = {"crf": "28", "preset": "slow", "threads": "1"}
            video = file.add_stream("libx264", rate=FPS, options=options)
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if sound is not None:
            audio = file.add_stream("aac", rate=RATE, layout="mono")
            audio.bit_rate = 40000
        for image in frames or []:
            file.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for start in range(0, 0 if sound is None else len(sound), 1024):
            block = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = RATE, start, Fraction(1, RATE)
            file.mux(audio.encode(block))
        for stream in filter(None, (video, audio)):
            file.mux(stream.encode())


def make_clip(clip: Clip, folder: Path, photo: np.ndarray, seed: int) -> None:
    """Make the file of one clip. Its random numbers depend on its name alone, not on the clips before it."""
    rng = np.random.default_rng([seed, zlib.crc32(clip.name.encode())])
    sound = make_sound(clip, rng)
    frames = None if clip.fault == "no-video" else make_frames(clip, sound, photo, rng)
    path = folder / clip.path
    write_clip(path, frames, None if clip.fault == "no-audio" else sound)
    if clip.fault == "broken":  # a copy that stopped half-way: the index (moov) at the end is missing
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_manifest(clips: list[Clip], path: Path) -> None:
    """One row per clip, without the labels of the unlabelled clips and the texts of the no-text clips."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("clip", "path", "label", "text", "speaker", "split", "start", "end"))
        for clip in clips:
            label = "" if clip.split == "unlabelled" else clip.label
            text = "" if clip.fault == "no-text" else clip.text
            writer.writerow((clip.name, clip.path, label, text, clip.speaker.name, clip.split, "", ""))


def print_plan(clips: list[Clip]) -> None:
    """Print how often each cue errs, and the clips with a fault."""
    for split in COUNTS:
        part = [clip for clip in clips if clip.split == split]
        wrong = ", ".join(f"{cue} {sum(getattr(c, cue) != c.label for c in part)}" for cue in ERRORS)
        print(f"{split}: {len(part)} clips; cues that show another emotion: {wrong}")
    for clip in clips:
        if clip.fault:
            print(f"{clip.fault}: {clip.path}")


def main() -> None:
    """Make the clips and the manifest."""
    parser = argparse.ArgumentParser(description="Make the demo clips and their manifest.")
    parser.add_argument("folder", type=Path, help="where clips/, test/ and manifest.csv go")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--plan", action="store_true", help="print how the clips err, and make nothing")
    args = parser.parse_args()
    clips = make_plan(np.random.default_rng(args.seed))
    print_plan(clips)
    if args.plan:
        return
    photo = portrait()
    for clip in clips:
        (args.folder / clip.path).parent.mkdir(parents=True, exist_ok=True)
        make_clip(clip, args.folder, photo, args.seed)
    write_manifest(clips, args.folder / "manifest.csv")


if __name__ == "__main__":
    main()

"""Speech recognition on speech, on speech in noise, and on signals without any speech.

    python tests/bench/asr.py RAVDESS WHISPER [WHISPER ...] [--no-vad] [--language en]

RAVDESS is a folder of its clips as FLAC with labels.csv; WHISPER are model folders. Clips are one per actor, of
changing emotion and sentence, as they are and in white noise at an SNR of 5 dB. The signals without speech are made
here: white noise (-50, -30 and -10 dB of full scale), a 50 Hz hum, a tone, clicks and digital silence, each 3 s and
30 s long. `words` is 1 - word error rate; a made signal with a transcript counts as `invented`. `seconds` in the JSON
is the processor time per clip, one clip at a time on one thread. Writes build/bench/asr.json.

    python tests/bench/asr.py RAVDESS --vad-only

prints the clips of all RAVDESS that voice activity detection misses, clean and in noise, and the highest probability of
speech in the signals without any.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import ROOT, Row, publish, say

from mertool.encoders import load_recogniser, resolve_recognition
from mertool.encoders.asr import Recogniser
from mertool.encoders.voice_activity import SPEECH_PROBABILITY, VoiceActivity
from mertool.features import SAMPLE_RATE
from mertool.media import read_audio
from mertool.noise import NoiseMix, add_noise

RESULT = ROOT / "build" / "bench" / "asr.json"
RATE, SNR, HUM, TONE = SAMPLE_RATE, 5.0, 50.0, 440.0
DEFAULT_PROBABILITY = 0.5  # of silero-vad
NOISE_LEVELS = (-50, -30, -10)  # dB of full scale
SENTENCES = {"01": "kids are talking by the door", "02": "dogs are sitting by the door"}


@dataclass(frozen=True)
class Signal:
    """A waveform (n,) and the words that are said in it; none in a made signal."""

    name: str
    waveform: np.ndarray
    words: str = ""


def main() -> None:
    options = parse()
    if options.vad_only:
        show_vad(options.ravdess)
        return
    torch.set_num_threads(options.threads)
    signals = [*read_speech(options.ravdess), *make_signals(3), *make_signals(30)]
    rows = []
    for folder in options.whisper:
        recognition = resolve_recognition(str(folder), language=options.language, vad=options.vad)
        recogniser = load_recogniser(recognition, device=torch.device("cpu"), dtype=torch.float32)
        recogniser.transcribe([signals[0].waveform])  # the first pass is slower
        for group in dict.fromkeys(signal.name for signal in signals):
            chosen = [signal for signal in signals if signal.name == group]
            rows.append(measure(f"{folder.name}/{group}", chosen, recogniser))
            say(f"{rows[-1].name}: {rows[-1].value:.3g} {rows[-1].unit}, {rows[-1].fields}")
    publish(rows, options.output, "Speech recognition" if options.vad else "Speech recognition without VAD")


def show_vad(folder: Path) -> None:
    """Print how many clips voice activity detection misses, and the highest probability of a signal without speech."""
    vad = VoiceActivity.load()
    speech = list(read_speech(folder, every=True))
    for group in ("speech", "speech in noise"):
        probabilities = [vad.speech_probability(signal.waveform) for signal in speech if signal.name == group]
        missed = sum(probability < SPEECH_PROBABILITY for probability in probabilities)
        at_default = sum(probability < DEFAULT_PROBABILITY for probability in probabilities)
        print(f"{group}: {missed} of {len(probabilities)} clips missed, {at_default} at {DEFAULT_PROBABILITY}")
    made = {
        signal.name: vad.speech_probability(signal.waveform)
        for seconds in (1, 3, 10, 30)
        for signal in make_signals(seconds)
    }
    name = max(made, key=lambda name: made[name])
    print(f"without speech: at most {made[name]:.2f} ({name}), {SPEECH_PROBABILITY} counts as speech")


def measure(name: str, signals: list[Signal], recogniser: Recogniser) -> Row:
    """Transcribe the signals one by one; the value is the word accuracy, without speech the number of transcripts."""
    texts, seconds, logged = [], [], []
    for signal in signals:
        start = time.process_time()
        (transcript,) = recogniser.transcribe([signal.waveform])
        seconds.append(time.process_time() - start)
        texts.append(transcript.text)
        logged.append([transcript.text[:80], round(transcript.confidence, 3), round(transcript.no_speech, 3)])
    fields: dict[str, Any] = {"seconds": float(np.mean(seconds)), "signals": len(signals), "transcripts": logged}
    if not signals[0].words:
        return Row(name, sum(map(bool, texts)), "invented", None, fields)
    errors = sum(word_errors(signal.words, text) for signal, text in zip(signals, texts, strict=True))
    return Row(name, 1 - errors / sum(len(signal.words.split()) for signal in signals), "words", None, fields)


def word_errors(reference: str, text: str) -> int:
    """Return the edit distance between the words of a reference and of a text, without capitals and punctuation."""
    kept = "".join(character if character.isalnum() else " " for character in text.lower().replace("'", ""))
    words, expected = kept.split(), reference.split()
    distances = list(range(len(words) + 1))
    for row, word in enumerate(expected, start=1):
        previous, distances[0] = distances[0], row
        for column, other in enumerate(words, start=1):
            substituted = previous + (word != other)
            previous = distances[column]
            distances[column] = min(substituted, distances[column] + 1, distances[column - 1] + 1)
    return distances[-1]


def read_speech(folder: Path, *, every: bool = False) -> Iterator[Signal]:
    """Yield one clip per actor, or every clip, as it is, and then all of them in white noise."""
    with open(folder / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    speakers = sorted({row["speaker"] for row in rows})
    chosen = [[row for row in rows if row["speaker"] == name][7 * index % 60] for index, name in enumerate(speakers)]
    chosen = rows if every else chosen
    clean = [Signal("speech", read_audio(folder / row["file"]), SENTENCES[row["statement"]]) for row in chosen]
    yield from clean
    for seed, signal in enumerate(clean):
        noise = np.random.default_rng(seed).standard_normal(len(signal.waveform)).astype(np.float32)
        mix = NoiseMix(files=(Path("noise"),), start=0.0, snr=SNR)
        yield Signal("speech in noise", add_noise(signal.waveform, mix, lambda _, noise=noise: noise), signal.words)


def make_signals(seconds: int) -> Iterator[Signal]:
    """Yield signals without speech."""
    times = np.arange(seconds * RATE) / RATE
    waveforms = {f"noise {level} dB": noise(level, len(times)) for level in NOISE_LEVELS}
    waveforms |= {"hum": 0.1 * np.sin(2 * np.pi * HUM * times), "tone": 0.1 * np.sin(2 * np.pi * TONE * times)}
    waveforms["clicks"] = np.where(np.arange(len(times)) % (RATE // 4) == 0, 0.5, 0.0)
    waveforms["digital silence"] = np.zeros(len(times))
    for name, waveform in waveforms.items():
        yield Signal(f"{name}, {seconds} s", waveform.astype(np.float32))


def noise(level: float, length: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(length) * 10 ** (level / 20)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ravdess", type=Path)
    parser.add_argument("whisper", type=Path, nargs="*")
    parser.add_argument("--vad-only", action="store_true", help="measure voice activity detection")
    parser.add_argument("--no-vad", dest="vad", action="store_false", help="without voice activity detection")
    parser.add_argument("--language", help="of the speech; default: detected")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()

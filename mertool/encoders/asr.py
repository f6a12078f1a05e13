"""Speech recognition with a Whisper of transformers: `load(folder, device, dtype)` gives a `Recogniser`.

Decoding is greedy, without timestamps, window by window (30 s), and a window without speech is told as in
openai/whisper (Radford et al. 2022, section 4.5). The loop is ours and not `generate`: the step that reads
<|startoftranscript|> gives the language and the probability of no speech, and the sound is encoded once.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer, WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from mertool.devices import to_device
from mertool.encoders.pretrained import load_pretrained
from mertool.errors import check_choice
from mertool.features import SAMPLE_RATE

# Seconds of windows run at once, by device; every window counts as a whole one.
BATCH = {"cpu": 120.0, "mps": 240.0, "cuda": 480.0}
SHORTEST = 0.1  # seconds; in less there is no word, and Whisper makes one up
# Thresholds of openai/whisper (transcribe.py): a window without speech is above the one and below the other.
NO_SPEECH, LOG_PROBABILITY = 0.6, -1.0
MOST_TOKENS = 224  # of one window, as in openai/whisper; a loop of repetitions ends there
MULTILINGUAL_SIZE = 51_865  # vocabularies of multilingual checkpoints have at least so many tokens


@dataclass(frozen=True)
class Transcript:
    """What was said in one wave; text "" if nothing was.

    `confidence` is exp of the mean log probability of the text's tokens, 0 without text. `no_speech` is the
    probability of the no-speech token after <|startoftranscript|>, the lowest of the windows; NaN where the
    vocabulary has no such token or no window was run. Confidence NaN: the model gave NaN.
    """

    text: str
    confidence: float
    no_speech: float


@dataclass(frozen=True)
class DecodedWindow:
    """What was decoded of one window: text tokens, their log probabilities (and that of the end), no speech."""

    tokens: list[int]
    log_probabilities: list[float]
    no_speech: float

    @property
    def silent(self) -> bool:
        """Whether openai/whisper would pass this window over."""
        mean = sum(self.log_probabilities) / max(1, len(self.log_probabilities))
        return self.no_speech > NO_SPEECH and mean < LOG_PROBABILITY


@dataclass(frozen=True)
class Marks:
    """Token ids: <|startoftranscript|>, <|endoftext|>, no speech (or None), languages, what the prompt ends with.

    `languages` is empty for an English-only checkpoint. `banned` and `banned_first` (V,) are True for tokens
    that may not be emitted, at any step and at the first.
    """

    start: int
    end: int
    no_speech: int | None
    languages: tuple[int, ...]
    tail: tuple[int, ...]
    banned: torch.Tensor
    banned_first: torch.Tensor


def load(folder: Path, *, device: torch.device, dtype: torch.dtype, language: str | None = None) -> "Recogniser":
    """Load the Whisper in `folder`. `language` (`zh`, `chinese`) is told to the model, else it detects one.

    Raises ValueError if the folder holds no Whisper or no tokenizer of one, MertoolError for a language that
    it does not know.
    """
    config = AutoConfig.from_pretrained(folder)
    if config.model_type != "whisper":
        raise ValueError(f"a Whisper is needed to recognise speech, and this is a model of type {config.model_type}")
    tokenizer = _load_tokenizer(folder)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    model: Any = load_pretrained(WhisperForConditionalGeneration, folder, device=device, dtype=dtype, config=config)
    marks = _find_marks(tokenizer.get_vocab(), model, language)
    return Recogniser(model, extractor, tokenizer, marks)


class Recogniser:
    """A Whisper on its device. `windows` is how many windows are run at once."""

    def __init__(self, model: Any, extractor: Any, tokenizer: Any, marks: Marks):
        self.model, self.extractor, self.tokenizer, self.marks = model, extractor, tokenizer, marks
        self.device, self.dtype = model.device, model.dtype
        self.banned = marks.banned.to(self.device)
        self.banned_first = marks.banned_first.to(self.device)
        self.samples = int(extractor.n_samples)
        self.seconds = self.samples / SAMPLE_RATE
        self.windows = max(1, int(BATCH.get(self.device.type, 0.0) // self.seconds))
        prompt = 1 + bool(marks.languages) + len(marks.tail)
        self.most_tokens = min(MOST_TOKENS, int(model.config.max_target_positions) - prompt)

    @property
    def budget(self) -> float:
        """Seconds of padded windows that are run at once."""
        return self.windows * self.seconds

    def halve(self) -> bool:
        """From now on run half as many windows at once; False if it is one already."""
        if self.windows == 1:
            return False
        self.windows //= 2
        return True

    def cost(self, wave: np.ndarray) -> float:
        """Seconds of padded windows of a wave (n,) at 16 kHz."""
        return max(1, -(-len(wave) // self.samples)) * self.seconds

    def recognise(self, waves: list[np.ndarray]) -> list[Transcript]:
        """What is said in each wave (n,) float32 mono at 16 kHz; a transcript does not depend on the others."""
        cut = [self._cut(wave) for wave in waves]
        flat = [window for windows in cut for window in windows]
        spoken = [
            result
            for start in range(0, len(flat), self.windows)
            for result in self._decode(flat[start : start + self.windows])
        ]
        results = iter(spoken)
        return [self._join([next(results) for _ in windows]) for windows in cut]

    def _cut(self, wave: np.ndarray) -> list[np.ndarray]:
        """Windows (n,) of a wave that may hold a word: digital silence and less than 0.1 s are left out."""
        windows = (wave[start : start + self.samples] for start in range(0, len(wave), self.samples))
        return [window for window in windows if len(window) >= SHORTEST * SAMPLE_RATE and window.any()]

    @torch.inference_mode()
    def _decode(self, windows: list[np.ndarray]) -> list[DecodedWindow]:
        mels = self.extractor(windows, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        encoded = self.model.get_encoder()(to_device(mels, self.device).to(self.dtype))
        start = torch.full((len(windows), 1), self.marks.start, device=self.device)
        logits, cache = self._step(encoded, start, None)
        no_speech = torch.full((len(windows),), math.nan)
        if self.marks.no_speech is not None:
            no_speech = logits.softmax(-1)[:, self.marks.no_speech].cpu()
        tokens, logs = self._emit(encoded, self._prompt(logits), cache)
        rows = zip(tokens.tolist(), logs.tolist(), no_speech.tolist(), strict=True)
        return [_until_end(*row, self.marks.end) for row in rows]

    def _step(self, encoded: Any, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Logits (B, V) in float32 after `tokens` (B, T), and the cache that the next step takes."""
        out = self.model(encoder_outputs=encoded, decoder_input_ids=tokens, past_key_values=cache, use_cache=True)
        return out.logits[:, -1].float(), out.past_key_values

    def _prompt(self, logits: torch.Tensor) -> torch.Tensor:
        """The tokens (B, P) that follow <|startoftranscript|>, each row with its most probable language."""
        tail = torch.tensor(self.marks.tail, dtype=torch.long, device=self.device).expand(len(logits), -1)
        if not self.marks.languages:
            return tail
        languages = torch.tensor(self.marks.languages, device=self.device)
        return torch.cat([languages[logits[:, languages].argmax(-1, keepdim=True)], tail], dim=1)

    def _emit(self, encoded: Any, prompt: torch.Tensor, cache: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The most probable token at each step (B, T) until all rows have ended, and its log probability."""
        tokens, logs = [prompt], []
        ended = torch.zeros(len(prompt), dtype=torch.bool, device=self.device)
        for number in range(self.most_tokens):
            logits, cache = self._step(encoded, tokens[-1], cache)
            logits = logits.masked_fill(self.banned if number else self.banned_first, -math.inf)
            best, token = logits.log_softmax(-1).max(-1, keepdim=True)
            tokens.append(token)
            logs.append(best)
            ended |= token[:, 0] == self.marks.end
            if ended.all():
                break
        return torch.cat(tokens[1:], dim=1), torch.cat(logs, dim=1)

    def _join(self, windows: list[DecodedWindow]) -> Transcript:
        no_speech = min((window.no_speech for window in windows), default=math.nan)
        heard = [window for window in windows if not window.silent]
        texts = [self.tokenizer.decode(window.tokens, skip_special_tokens=True) for window in heard]
        text = " ".join(" ".join(texts).split())
        logs = [log for window in heard for log in window.log_probabilities[: len(window.tokens)]]
        if any(map(math.isnan, logs)):
            return Transcript("", math.nan, no_speech)
        if not any(map(str.isalnum, text)):  # dots, dashes, notes of music
            return Transcript("", 0.0, no_speech)
        return Transcript(text, math.exp(sum(logs) / len(logs)), no_speech)


def _until_end(tokens: list[int], logs: list[float], no_speech: float, end: int) -> DecodedWindow:
    length = tokens.index(end) if end in tokens else len(tokens)
    return DecodedWindow(tokens[:length], logs[: length + 1], no_speech)


def _load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`; ValueError if there is none of a Whisper."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError("there is no tokenizer beside this Whisper (tokenizer.json, or vocab.json)") from error
    # Newer versions of transformers make an empty tokenizer where there is no file of one.
    needed = ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>")
    missing = [mark for mark in needed if mark not in tokenizer.get_vocab()]
    if missing:
        raise ValueError(f"the tokenizer beside this Whisper has no {missing[0]} (tokenizer.json, or vocab.json)")
    return tokenizer


def _find_marks(vocabulary: dict[str, int], model: Any, language: str | None) -> Marks:
    """Token ids by their names; what a fine-tuned checkpoint's generation_config may have lost is not asked."""
    settings, size = model.generation_config, int(model.config.vocab_size)
    start, end = vocabulary["<|startoftranscript|>"], vocabulary["<|endoftext|>"]
    no_speech = next((vocabulary[n] for n in ("<|nospeech|>", "<|nocaptions|>") if n in vocabulary), None)
    languages = {code: vocabulary[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in vocabulary}
    multilingual = getattr(settings, "is_multilingual", None)
    if not (size >= MULTILINGUAL_SIZE if multilingual is None else multilingual):
        languages = {}  # the vocabulary of an English-only checkpoint names them all the same
    if language:
        code = language.strip("<|>").lower()
        code = check_choice("language", TO_LANGUAGE_CODE.get(code, code), languages or ("en",))
        languages = {code: languages[code]} if languages else {}
    tail = ("<|transcribe|>",) * bool(languages) + ("<|notimestamps|>",)
    words = [number for token, number in vocabulary.items() if not (token[:2] == "<|" and token[-2:] == "|>")]
    banned = torch.ones(size, dtype=torch.bool)
    banned[[number for number in words if number < size] + [end]] = False
    banned[_suppressed(model, "suppress_tokens")] = True
    first = banned.clone()
    first[_suppressed(model, "begin_suppress_tokens")] = True
    tail_ids = tuple(vocabulary[name] for name in tail if name in vocabulary)
    return Marks(start, end, no_speech, tuple(languages.values()), tail_ids, banned, first)


def _suppressed(model: Any, name: str) -> list[int]:
    """Token ids that `name` lists in the generation configuration, in older checkpoints in the model's."""
    given = getattr(model.generation_config, name, None) or getattr(model.config, name, None) or []
    return [number for number in given if 0 <= number < model.config.vocab_size]

"""Speech recognition with Whisper (Radford et al., 2022), by transformers' `generate`.

Whisper makes up words where nobody speaks. A window is therefore transcribed only if voice activity detection hears
speech in it, and its text is kept only if it passes the tests of openai/whisper.
"""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from mertool.devices import to_device
from mertool.encoders.pretrained import load_config, load_feature_extractor, load_pretrained
from mertool.encoders.recognition import RecognitionSettings
from mertool.encoders.voice_activity import VoiceActivity
from mertool.encoders.whisper_tokens import WhisperTokens, find_tokens, load_whisper_tokenizer
from mertool.features import SAMPLE_RATE

# Seconds of windows run at once, by device; each window counts in full.
MAX_BATCH_SECONDS = {"cpu": 120.0, "mps": 240.0, "cuda": 480.0}
MIN_SECONDS = 0.1  # shorter audio has no word in it, and Whisper makes one up
MAX_TOKENS = 224  # of a window, as in openai/whisper
# Radford et al. (2022), section 4.5, with the thresholds of openai/whisper (transcribe.py).
NO_SPEECH_THRESHOLD, LOG_PROBABILITY_THRESHOLD, COMPRESSION_RATIO_THRESHOLD = 0.6, -1.0, 2.4
FALLBACK_TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
SEED = 0


@dataclass(frozen=True)
class Transcript:
    """The text of one waveform.

    text: "" if there is no speech.
    confidence: exp of the mean log probability of the text's tokens at temperature 1; 0 without text, NaN if the model
    gave NaN.
    no_speech: the probability of the no-speech token after <|startoftranscript|>, the lowest of the windows; NaN where
    the vocabulary has no such token or no window was run.
    language: the code of the spoken language (`zh`), of several that of the longest text; "" without text.
    """

    text: str
    confidence: float
    no_speech: float
    language: str = ""


@dataclass(frozen=True, kw_only=True)
class DecodedWindow:
    """The text of a window, and how sure the model is of it.

    tokens: of the text. log_probabilities: of each token and of the end after them.
    no_speech: the probability of no speech. language: the code of the language.
    """

    text: str
    tokens: list[int]
    log_probabilities: list[float]
    no_speech: float
    language: str

    @property
    def mean_log_probability(self) -> float:
        """The mean over tokens and the end."""
        return sum(self.log_probabilities) / max(1, len(self.log_probabilities))

    @property
    def is_silent(self) -> bool:
        """True if there is no speech: no speech is likely, and the text is not."""
        return self.no_speech > NO_SPEECH_THRESHOLD and self.mean_log_probability < LOG_PROBABILITY_THRESHOLD

    @property
    def is_failed(self) -> bool:
        """True if the text is unlikely or repeats itself; False for NaN, which is recorded as such."""
        if math.isnan(self.mean_log_probability):
            return False
        repeats = compression_ratio(self.text) > COMPRESSION_RATIO_THRESHOLD
        return repeats or self.mean_log_probability < LOG_PROBABILITY_THRESHOLD


def compression_ratio(text: str) -> float:
    """Return the length of a text over its length compressed by zlib, in bytes of UTF-8."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))


def load(
    folder: Path, *, device: torch.device, dtype: torch.dtype, settings: RecognitionSettings | None = None
) -> "Recogniser":
    """Load the Whisper in `folder`, and voice activity detection if the settings have it.

    Raises ValueError if the folder has no Whisper or no tokenizer of one, MertoolError for an unknown language and for
    voice activity detection that is not installed.
    """
    settings = settings or RecognitionSettings()
    config = load_config(folder)
    if config.model_type != "whisper":
        raise ValueError(f"a Whisper is needed to recognise speech, and this is a model of type {config.model_type}")
    tokenizer = load_whisper_tokenizer(folder)
    extractor = load_feature_extractor(folder)
    model: Any = load_pretrained(WhisperForConditionalGeneration, folder, device=device, dtype=dtype, config=config)
    tokens = find_tokens(tokenizer.get_vocab(), model, settings.language)
    model.generation_config = tokens.generation_config()
    settings.check_available(str(folder))
    vad = VoiceActivity.load() if settings.vad else None
    return Recogniser(model, extractor=extractor, tokenizer=tokenizer, tokens=tokens, vad=vad)


class Recogniser:
    """A Whisper on its device.

    model: whose `generation_config` is that of `tokens`.
    extractor: transformers' computation of log-mel spectrograms.
    windows: number of windows (30 s each) that are run at once.
    vad: voice activity detection; None: every window is transcribed.
    """

    def __init__(
        self, model: Any, *, extractor: Any, tokenizer: Any, tokens: WhisperTokens, vad: VoiceActivity | None = None
    ):
        self.model, self.extractor, self.tokenizer, self.tokens, self.vad = model, extractor, tokenizer, tokens, vad
        self.samples = int(extractor.n_samples)
        self.seconds = self.samples / SAMPLE_RATE
        self.windows = max(1, int(MAX_BATCH_SECONDS.get(model.device.type, 0.0) // self.seconds))
        prompt = tokens.prompt(next(iter(tokens.languages), None))
        self.max_tokens = min(MAX_TOKENS, int(model.config.max_target_positions) - len(prompt))

    @property
    def budget(self) -> float:
        """Seconds of padded windows that are run at once."""
        return self.windows * self.seconds

    def halve(self) -> bool:
        """Halve the number of windows that are run at once; return False if it is one already."""
        if self.windows == 1:
            return False
        self.windows //= 2
        return True

    def cost(self, waveform: np.ndarray) -> float:
        """Return the seconds of padded windows of a waveform (n,) at 16 kHz."""
        return max(1, -(-len(waveform) // self.samples)) * self.seconds

    def transcribe(self, waveforms: list[np.ndarray]) -> list[Transcript]:
        """Transcribe waveforms (n,) float32 mono at 16 kHz; a transcript does not depend on the other waveforms."""
        windows = [self._cut(waveform) for waveform in waveforms]
        flat = [window for clip_windows in windows for window in clip_windows]
        decoded: list[DecodedWindow] = []
        for start in range(0, len(flat), self.windows):
            decoded += self._decode(flat[start : start + self.windows])
        remaining = iter(decoded)
        return [self._join([next(remaining) for _ in clip_windows]) for clip_windows in windows]

    def _cut(self, waveform: np.ndarray) -> list[np.ndarray]:
        """Cut a waveform into windows (n,), without those that hold no speech or are too short for a word."""
        windows = (waveform[start : start + self.samples] for start in range(0, len(waveform), self.samples))
        return [window for window in windows if self._may_hold_speech(window)]

    def _may_hold_speech(self, window: np.ndarray) -> bool:
        if len(window) < MIN_SECONDS * SAMPLE_RATE or not window.any():
            return False
        return self.vad is None or self.vad.has_speech(window)

    @torch.inference_mode()
    def _decode(self, windows: list[np.ndarray]) -> list[DecodedWindow]:
        """Decode windows greedily as one batch, and where that fails by sampling."""
        mels = self.extractor(windows, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        mels = to_device(mels, self.model.device).to(self.model.dtype)
        # Computed once for the language, the text and its score: `generate` alone runs the encoder for each of them.
        encoded = self.model.get_encoder()(mels).last_hidden_state
        languages = self._detect_languages(encoded)
        decoded = self._score(encoded, languages, self._generate(encoded, languages))
        for row, window in enumerate(decoded):
            if window.is_failed and not window.is_silent:
                # One by one and each with the same seed, so that a transcript does not depend on its batch.
                decoded[row] = self._decode_by_sampling(encoded[[row]], languages[row])
        return decoded

    def _decode_by_sampling(self, encoded: torch.Tensor, language: str | None) -> DecodedWindow:
        """Decode one window at rising temperatures until it passes the tests; return the last attempt in any case."""
        device = self.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(SEED)
            for temperature in FALLBACK_TEMPERATURES:
                tokens = self._generate(encoded, [language], do_sample=True, temperature=temperature, top_k=0)
                (window,) = self._score(encoded, [language], tokens)
                if window.is_silent or not window.is_failed:
                    break
        return window

    def _detect_languages(self, encoded: torch.Tensor) -> list[str | None]:
        """Return the most probable language token of each window; None for an English-only checkpoint."""
        if len(self.tokens.languages) <= 1:
            return [next(iter(self.tokens.languages), None)] * len(encoded)
        token_of = {number: token for token, number in self.tokens.languages.items()}
        return [token_of[number] for number in self.model.detect_language(encoder_outputs=_output(encoded)).tolist()]

    def _generate(self, encoded: torch.Tensor, languages: list[str | None], **options: Any) -> list[list[int]]:
        """Return the text tokens of each window, without prompt and end."""
        if self.tokens.languages:
            options |= {"language": languages, "task": "transcribe"}
        sequences = self.model.generate(
            encoder_outputs=_output(encoded), max_new_tokens=self.max_tokens, return_timestamps=False, **options
        )
        return [row[: row.index(self.tokens.end)] if self.tokens.end in row else row for row in sequences.tolist()]

    def _score(
        self, encoded: torch.Tensor, languages: list[str | None], tokens_of_windows: list[list[int]]
    ) -> list[DecodedWindow]:
        """Compute the log probabilities of each text in one decoder pass, at temperature 1 however it was sampled."""
        decoded = []
        for row, (language, tokens) in enumerate(zip(languages, tokens_of_windows, strict=True)):
            prompt = self.tokens.prompt(language)
            inputs = torch.tensor([prompt + tokens], device=self.model.device)
            output = self.model(encoder_outputs=_output(encoded[row : row + 1]), decoder_input_ids=inputs)
            logits = output.logits[0].float().cpu()
            # A text that was cut has no end to score.
            targets = tokens if len(tokens) == self.max_tokens else [*tokens, self.tokens.end]
            text_logits = logits[len(prompt) - 1 :].masked_fill(self.tokens.suppressed, -math.inf)
            text_logits[0].masked_fill_(self.tokens.suppressed_first, -math.inf)
            log_probabilities = text_logits.log_softmax(-1)[range(len(targets)), targets].tolist()
            no_speech = math.nan
            if self.tokens.no_speech is not None:
                no_speech = float(logits[0].softmax(-1)[self.tokens.no_speech])
            decoded.append(
                DecodedWindow(
                    text=self.tokenizer.decode(tokens, skip_special_tokens=True),
                    tokens=tokens,
                    log_probabilities=log_probabilities,
                    no_speech=no_speech,
                    language=language.strip("<|>") if language else "en",
                )
            )
        return decoded

    def _join(self, windows: list[DecodedWindow]) -> Transcript:
        """Join the texts of a clip's windows. Texts that fail the tests in spite of sampling are left out."""
        no_speech = min((window.no_speech for window in windows), default=math.nan)
        spoken = [window for window in windows if not window.is_failed]
        text = " ".join(" ".join(window.text for window in spoken).split())
        log_probabilities = [value for window in spoken for value in window.log_probabilities[: len(window.tokens)]]
        if any(map(math.isnan, log_probabilities)):
            return Transcript("", math.nan, no_speech)
        if not any(map(str.isalnum, text)):  # only dots, dashes or notes of music
            return Transcript("", 0.0, no_speech)
        confidence = math.exp(sum(log_probabilities) / len(log_probabilities))
        return Transcript(text, confidence, no_speech, max(spoken, key=lambda window: len(window.tokens)).language)


def _output(encoded: torch.Tensor) -> BaseModelOutput:
    return BaseModelOutput(last_hidden_state=encoded)

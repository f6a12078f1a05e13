"""The special tokens of a Whisper checkpoint, and settings of `generate` made of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from mertool.encoders.pretrained import load_tokenizer
from mertool.encoders.whisper_languages import LANGUAGES, MULTILINGUAL_SIZE, parse_language
from mertool.errors import check_choice

REQUIRED_TOKENS = ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>")
NO_SPEECH_TOKENS = ("<|nospeech|>", "<|nocaptions|>")  # the name differs between versions of Whisper


@dataclass(frozen=True, kw_only=True)
class WhisperTokens:
    """Token ids of a checkpoint.

    start, end, no_timestamps: <|startoftranscript|>, <|endoftext|> and <|notimestamps|>.
    transcribe: the task, None in an English-only checkpoint.
    no_speech: None where the vocabulary has no such token.
    languages: id of each language token (`<|en|>`) that may be chosen; empty in an English-only checkpoint.
    suppressed: (V,) True for tokens that are never emitted: special tokens but the end, and those that the checkpoint
    lists.
    suppressed_first: (V,) True for tokens that are not emitted first.
    """

    start: int
    end: int
    no_timestamps: int
    transcribe: int | None
    no_speech: int | None
    languages: Mapping[str, int]
    suppressed: torch.Tensor
    suppressed_first: torch.Tensor

    def prompt(self, language: str | None) -> list[int]:
        """Return the tokens before the text, without timestamps; `language` is a key of `languages`."""
        if language is None or self.transcribe is None:
            return [self.start, self.no_timestamps]
        return [self.start, self.languages[language], self.transcribe, self.no_timestamps]

    def generation_config(self) -> GenerationConfig:
        """Return the settings of `generate`, complete, so that none come from the checkpoint."""
        settings: dict[str, Any] = {
            "decoder_start_token_id": self.start,
            "bos_token_id": self.end,
            "eos_token_id": self.end,
            "pad_token_id": self.end,
            "no_timestamps_token_id": self.no_timestamps,
            "suppress_tokens": self.suppressed.nonzero()[:, 0].tolist(),
            "begin_suppress_tokens": self.suppressed_first.nonzero()[:, 0].tolist(),
            "is_multilingual": bool(self.languages),
            "return_timestamps": False,
        }
        if self.languages:
            settings |= {"lang_to_id": dict(self.languages), "task_to_id": {"transcribe": self.transcribe}}
        return GenerationConfig(**settings)


def load_whisper_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in `folder`; raises ValueError if it is not a Whisper's."""
    try:
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError("there is no tokenizer beside this Whisper (tokenizer.json, or vocab.json)") from error
    # Newer versions of transformers make an empty tokenizer where there is no file of one.
    missing = [token for token in REQUIRED_TOKENS if token not in tokenizer.get_vocab()]
    if missing:
        raise ValueError(f"the tokenizer beside this Whisper has no {missing[0]} (tokenizer.json, or vocab.json)")
    return tokenizer


def find_tokens(vocabulary: Mapping[str, int], model: Any, language: str | None) -> WhisperTokens:
    """Find the special tokens by their names, because fine-tuned checkpoints often lack a generation_config.

    With `language` (`zh`, `chinese`) no other is chosen; raises MertoolError if the checkpoint does not know it.
    """
    languages = _languages(vocabulary, model)
    if language:
        code = parse_language(language)
        check_choice("language", code, languages or ("en",))
        languages = {code: languages[code]} if languages else {}
    size, end = int(model.config.vocab_size), vocabulary["<|endoftext|>"]
    words = [number for token, number in vocabulary.items() if not (token[:2] == "<|" and token[-2:] == "|>")]
    suppressed = torch.ones(size, dtype=torch.bool)
    suppressed[[number for number in words if number < size] + [end]] = False
    suppressed[_suppressed_ids(model, "suppress_tokens")] = True
    suppressed_first = suppressed.clone()
    suppressed_first[_suppressed_ids(model, "begin_suppress_tokens")] = True
    return WhisperTokens(
        start=vocabulary["<|startoftranscript|>"],
        end=end,
        no_timestamps=vocabulary["<|notimestamps|>"],
        transcribe=vocabulary.get("<|transcribe|>") if languages else None,
        no_speech=next((vocabulary[token] for token in NO_SPEECH_TOKENS if token in vocabulary), None),
        languages={f"<|{code}|>": number for code, number in languages.items()},
        suppressed=suppressed,
        suppressed_first=suppressed_first,
    )


def _languages(vocabulary: Mapping[str, int], model: Any) -> dict[str, int]:
    """Return the token id of each language code that the checkpoint can transcribe; none if it is English-only."""
    multilingual = getattr(model.generation_config, "is_multilingual", None)
    if multilingual is None:
        multilingual = int(model.config.vocab_size) >= MULTILINGUAL_SIZE
    if not multilingual:
        return {}  # the vocabulary of an English-only checkpoint names the languages all the same
    return {code: vocabulary[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in vocabulary}


def _suppressed_ids(model: Any, name: str) -> list[int]:
    """Return the token ids that `name` lists in the generation configuration, in older checkpoints in the model's."""
    ids = getattr(model.generation_config, name, None) or getattr(model.config, name, None) or []
    return [number for number in ids if 0 <= number < model.config.vocab_size]

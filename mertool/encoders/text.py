"""Text encoders (BERT, RoBERTa, ...) and decoder language models, by their hidden states per token."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from mertool.devices import to_device
from mertool.encoders.hidden_states import capture_hidden_states, find_blocks, stack
from mertool.encoders.loading import load_model
from mertool.errors import ClipError

MOST_TOKENS = 512


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> "TextEncoder":
    """Load the encoder in `folder`."""
    return TextEncoder(folder, device, dtype)


class TextEncoder:
    """A transformer over tokens. Special tokens are cut from what comes back."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # tokenizers raise anything where their files are not there
            raise ValueError(f"it has no tokenizer that can be loaded ({type(error).__name__})") from error
        self.tokenizer.padding_side = "right"  # of a causal model no real token then sees a pad
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # Loaded in `dtype` at once: a language model in float32 would need twice the memory.
        self.model: Any = load_model(AutoModel, folder, dtype).to(device).eval()
        config = self.model.config
        self.layers, self.channels = int(config.num_hidden_layers), int(config.hidden_size)
        self.blocks = find_blocks(self.model, self.layers)
        room = int(getattr(config, "max_position_embeddings", MOST_TOKENS))
        # RoBERTa counts positions from padding_idx + 1, so two of its positions are never used.
        self.most_tokens = min(MOST_TOKENS, room - 2) if "roberta" in config.model_type else min(MOST_TOKENS, room)
        self.device = device
        self.truncated = 0  # texts that were cut so far

    def prepare(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (n,), and which of them stand for the text itself. Raises ClipError no_text."""
        options = {"return_special_tokens_mask": True, "verbose": False}
        tokens = self.tokenizer(text, **options)
        if len(tokens["input_ids"]) > self.most_tokens:
            tokens = self.tokenizer(text, truncation=True, max_length=self.most_tokens, **options)
            self.truncated += 1
        real = ~torch.tensor(tokens["special_tokens_mask"], dtype=torch.bool)
        if not real.any():
            raise ClipError("no_text", "the tokenizer finds no token in the transcript")
        return torch.tensor(tokens["input_ids"]), real

    def cost(self, prepared: tuple[torch.Tensor, torch.Tensor]) -> float:
        """Tokens."""
        return float(len(prepared[0]))

    def encode(self, texts: list[str], keep: tuple[int, ...]) -> list[torch.Tensor]:
        """(L, T, D) for each text, T tokens without the special ones. Raises ClipError no_text."""
        return self.encode_prepared([self.prepare(text) for text in texts], keep)

    @torch.inference_mode()
    def encode_prepared(
        self, texts: list[tuple[torch.Tensor, torch.Tensor]], keep: tuple[int, ...]
    ) -> list[torch.Tensor]:
        """(L, T, D) for each prepared text."""
        ids, real = zip(*texts, strict=True)
        fill = self.tokenizer.pad_token_id or 0
        padded = nn.utils.rnn.pad_sequence(list(ids), batch_first=True, padding_value=fill)
        lengths = torch.tensor([len(tokens) for tokens in ids])
        mask = (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()
        with capture_hidden_states(self.blocks, keep) as found:
            self.model(input_ids=to_device(padded, self.device), attention_mask=to_device(mask, self.device))
        layers = stack(found, keep)
        return [layers[:, row, : len(own)][:, own.to(self.device)] for row, own in enumerate(real)]

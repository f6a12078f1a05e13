"""Text encoders (BERT, RoBERTa, ...) and decoder language models, by their hidden states per token."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from mertool.encoders.blocks import find_blocks, stack, tap
from mertool.encoders.checkpoint import load_model
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
        self.model: Any = load_model(AutoModel, folder).to(device, dtype).eval()
        config = self.model.config
        self.layers, self.channels = int(config.num_hidden_layers), int(config.hidden_size)
        self.blocks = find_blocks(self.model, self.layers)
        room = int(getattr(config, "max_position_embeddings", MOST_TOKENS))
        # RoBERTa counts positions from padding_idx + 1, so two of its positions are never used.
        self.most_tokens = min(MOST_TOKENS, room - 2) if "roberta" in config.model_type else min(MOST_TOKENS, room)
        self.device = device

    def cost(self, text: str) -> float:
        """Characters, which go with the tokens."""
        return float(len(text))

    @torch.inference_mode()
    def encode(self, texts: list[str], keep: tuple[int, ...]) -> list[torch.Tensor]:
        """(L, T, D) for each text, T tokens without the special ones. Raises ClipError no_text."""
        batch = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.most_tokens,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        real = batch["attention_mask"].bool() & ~batch["special_tokens_mask"].bool()
        if not real.any(dim=1).all():
            raise ClipError("no_text", "the tokenizer finds no token in the transcript")
        with tap(self.blocks, keep) as found:
            self.model(
                input_ids=batch["input_ids"].to(self.device),
                attention_mask=batch["attention_mask"].to(self.device),
            )
        layers = stack(found, keep)
        return [layers[:, row, mask.to(self.device)] for row, mask in enumerate(real)]

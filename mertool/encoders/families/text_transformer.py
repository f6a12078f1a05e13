"""Encoders of text: BERT, RoBERTa and their kind, and decoder language models, by their hidden states per token.

Of a model with an encoder and a decoder, as T5, the encoder is used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from mertool.devices import to_device
from mertool.encoders.base import Encoder
from mertool.encoders.batch_invariance import group_by_length, is_batch_invariant
from mertool.encoders.hidden_states import capture_hidden_states, stack_layers
from mertool.encoders.pretrained import load_pretrained, load_tokenizer
from mertool.errors import ClipError, MertoolError

MODALITY = "text"
MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "qwen2", "llama")
OTHER_TYPES = True
MAX_TOKENS = 512
TEST_LENGTHS = (5, 9)  # tokens of the two texts that are encoded at load, to see whether padding changes values


def load(folder: Path, *, device: torch.device, dtype: torch.dtype) -> "TextEncoder":
    """Load the encoder in `folder`; raises ValueError if there is no tokenizer."""
    try:
        tokenizer = load_tokenizer(folder)
    except MertoolError:
        raise
    except Exception as error:  # tokenizers raise anything where their files are not there
        raise ValueError(f"it has no tokenizer that can be loaded ({type(error).__name__})") from error
    model = load_pretrained(AutoModel, folder, device=device, dtype=dtype)
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    model.config.use_cache = False  # of keys and values, which a decoder would keep in memory for the next token
    encoder = TextEncoder(model, tokenizer, device=device)
    # A model without an attention mask, or with one that it does not use, would see the padding.
    shorter, longer = (encoder.tokens_for_test(count) for count in TEST_LENGTHS)
    encoder.supports_padding = is_batch_invariant(encoder, shorter, longer, dtype=dtype)
    return encoder


class TextEncoder(Encoder):
    """A transformer on tokens. The states of special tokens are removed.

    tokenizer: of transformers.
    max_tokens: longer texts are cut, and counted in `truncated`.
    supports_padding: whether texts of different lengths may share a forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any, *, device: torch.device):
        config = model.config
        super().__init__(
            model, num_layers=int(config.num_hidden_layers), channels=int(config.hidden_size), device=device
        )
        self.tokenizer = tokenizer
        self.supports_padding = True
        positions = int(getattr(config, "max_position_embeddings", MAX_TOKENS))
        self.max_tokens = min(MAX_TOKENS, positions - _unused_positions(model))

    def prepare(self, item: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids (n,), and a mask (n,) of those that are not special. Raises ClipError no_text."""
        options = {"return_special_tokens_mask": True, "verbose": False}
        tokens = self.tokenizer(item, **options)
        if len(tokens["input_ids"]) > self.max_tokens:
            tokens = self.tokenizer(item, truncation=True, max_length=self.max_tokens, **options)
            self.truncated += 1
        is_text = ~torch.tensor(tokens["special_tokens_mask"], dtype=torch.bool)
        if not is_text.any():
            raise ClipError("no_text", "the tokenizer finds no token in the transcript")
        return torch.tensor(tokens["input_ids"]), is_text

    def cost(self, prepared: tuple[torch.Tensor, torch.Tensor]) -> float:
        """Return the number of tokens, special ones included."""
        return float(len(prepared[0]))

    def encode_prepared(
        self, prepared: Sequence[tuple[torch.Tensor, torch.Tensor]], layers: Sequence[int]
    ) -> list[torch.Tensor]:
        """Return (L, T, D) for each prepared text."""
        lengths = [len(ids) for ids, _ in prepared]
        states: dict[int, torch.Tensor] = {}
        for group in group_by_length(lengths, supports_padding=self.supports_padding):
            states.update(zip(group, self._forward([prepared[index] for index in group], layers), strict=True))
        return [states[index] for index in range(len(prepared))]

    def tokens_for_test(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a prepared text of the last `count` tokens of the vocabulary; padding is among the first."""
        vocabulary = self.model.get_input_embeddings().num_embeddings
        ids = torch.arange(vocabulary - min(count, self.max_tokens), vocabulary)
        return ids, torch.ones(len(ids), dtype=torch.bool)

    def _padding_id(self) -> int:
        """Return the token that fills rows; the mask hides it, but it needs an embedding, which not every one has."""
        padding = self.tokenizer.pad_token_id
        vocabulary = self.model.get_input_embeddings().num_embeddings
        return padding if padding is not None and padding < vocabulary else 0

    @torch.inference_mode()
    def _forward(
        self, prepared: Sequence[tuple[torch.Tensor, torch.Tensor]], layers: Sequence[int]
    ) -> list[torch.Tensor]:
        ids, text_masks = zip(*prepared, strict=True)
        # On the right, whatever side the tokenizer pads: absolute positions stay those of the text, and in a causal
        # model no token of the text sees the padding.
        padded = nn.utils.rnn.pad_sequence(list(ids), batch_first=True, padding_value=self._padding_id())
        lengths = torch.tensor([len(tokens) for tokens in ids])
        mask = (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()
        with capture_hidden_states(self.blocks, layers) as states:
            self.model(input_ids=to_device(padded, self.device), attention_mask=to_device(mask, self.device))
        stacked = stack_layers(states, layers)
        return [stacked[:, row, : len(is_text)][:, is_text.to(self.device)] for row, is_text in enumerate(text_masks)]


def _unused_positions(model: Any) -> int:
    """Return how many of the first positions no token has: RoBERTa and its kind count from padding_idx + 1."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0

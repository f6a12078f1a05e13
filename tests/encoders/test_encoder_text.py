"""Text encoders of random weights: what `extract text` stores equals plain transformers, for BERT and decoders.

Their weights are drawn larger than transformers draws them, so that every block changes the states by much.
"""

import numpy as np
import pytest
import torch
from fixtures.encoders import READ, make_tokenizer
from tokenizers import processors
from torch.nn.functional import cosine_similarity
from transformers import AutoConfig, AutoModel, AutoTokenizer

from mertool.store import FeatureStore

SPECIAL = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
NO_PADDING = {name: token for name, token in SPECIAL.items() if name != "pad_token"}
SETTINGS = {**READ, "num_hidden_layers": 5, "vocab_size": 60, "max_position_embeddings": 64}
DECODER = {**SETTINGS, "num_key_value_heads": 2}
LAYERS = tuple(range(6))
# Special tokens of a text at its beginning and its end.
SPECIAL_TOKENS = {"bert": (1, 1), "llama": (1, 0), "qwen2": (0, 0), "mistral": (1, 0)}
KINDS = list(SPECIAL_TOKENS)
DECODERS = KINDS[1:]
TEXTS = {
    "short": "wow",
    "long": "we lost the dog again and i am so sad that the day we lost the dog was the day",
    "middle": "what a day, what a dog!",
    "other": "so sad",
}


def save_model(model, folder):
    """Save a model whose parameters are all random, biases and norms as well."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith("weight")  # of a norm
            parameter.normal_(1.0 if is_scale else 0.0, 0.15)
    model.save_pretrained(folder)


def make_checkpoint(kind, folder, **changes):
    settings = {**(SETTINGS if kind == "bert" else DECODER), **changes}
    if kind == "mistral":
        settings["sliding_window"] = 4
    save_model(AutoModel.from_config(AutoConfig.for_model(kind, **settings)), folder)
    tokenizer = make_tokenizer(NO_PADDING if kind == "llama" else SPECIAL, wrap=kind == "bert")
    if kind in ("llama", "mistral"):
        first = tokenizer.bos_token
        around = [(first, tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", pair=None, special_tokens=around
        )
    tokenizer.padding_side = "right" if kind == "bert" else "left"  # as those of many decoders
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders by kind."""
    folder = tmp_path_factory.mktemp("texts")
    return {kind: make_checkpoint(kind, folder / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def plain_states(checkpoints, reference):
    """A function (kind) that returns the states (L, T, D) of each text by transformers, without special tokens."""

    def states(kind):
        model = AutoModel.from_pretrained(checkpoints[kind]).eval()
        tokenizer = AutoTokenizer.from_pretrained(checkpoints[kind])
        first, last = SPECIAL_TOKENS[kind]
        found = []
        for text in TEXTS.values():
            tokens = tokenizer(text, return_tensors="pt")
            layers, _ = reference(model, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            found.append(torch.stack([layer[first : len(layer) - last] for layer in layers]))
        return found

    return states


def check_close(values, expected):
    """At most 1e-4 where values are up to 10, 1e-5 of the largest value otherwise."""
    values, expected = torch.as_tensor(values), torch.as_tensor(expected)
    assert values.shape == expected.shape
    assert float((values - expected).abs().max()) <= 1e-5 * max(10.0, float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_of_a_batch_equals_transformers(kind, checkpoints, plain_states, load_as_extract):
    clip_encoder = load_as_extract(checkpoints[kind], "text")
    encoder = clip_encoder.encoder
    assert encoder.supports_padding
    for states, expected in zip(encoder.encode(list(TEXTS.values()), LAYERS), plain_states(kind), strict=True):
        check_close(states, expected)
        check_close(clip_encoder.poolings[0](states, "clip"), expected.mean(1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_has_states_of_its_own(kind, plain_states):
    """So that a layer that is one off, or a block that is skipped, would show in the tests of this file."""
    for states in plain_states(kind):
        changes = (states[1:] - states[:-1]).flatten(1).norm(dim=1) / states[:-1].flatten(1).norm(dim=1)
        assert float(changes.min()) > 0.05


@pytest.mark.parametrize(
    ("kind", "side"), [("bert", "right"), *((kind, side) for kind in DECODERS for side in ("left", "right"))]
)
def test_a_batch_equals_one_that_the_tokenizer_pads(kind, side, checkpoints, load_as_extract):
    """On either side: a decoder's positions are relative. BERT's are not, so its batches are padded on the right."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[kind], padding_side=side)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokens = tokenizer(list(TEXTS.values()), padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(checkpoints[kind]).eval()
    with torch.no_grad():
        hidden = model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        ).hidden_states[:-1]  # transformers' last entry is after a norm, which a block's output is not
    encoder = load_as_extract(checkpoints[kind], "text").encoder
    first, last = SPECIAL_TOKENS[kind]
    for row, states in enumerate(encoder.encode(list(TEXTS.values()), LAYERS[:-1])):
        expected = torch.stack([layer[row][tokens.attention_mask[row].bool()] for layer in hidden])
        check_close(states, expected[:, first : expected.shape[1] - last])


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_has_the_direction_of_float32(kind, checkpoints, plain_states, load_as_extract):
    encoder = load_as_extract(checkpoints[kind], "text", dtype="bfloat16").encoder
    for states, expected in zip(encoder.encode(list(TEXTS.values()), LAYERS), plain_states(kind), strict=True):
        assert float(cosine_similarity(states, expected, dim=-1).min()) >= 0.999
        assert float(cosine_similarity(states.mean(1), expected.mean(1), dim=-1).min()) >= 0.999


POOLED = {
    "mean": lambda states: states.mean(1),
    "mean-std": lambda states: torch.cat([states.mean(1), states.std(1, correction=0)], 1),
    "none": lambda states: states,
}


@pytest.fixture
def stored(checkpoints, call, write_manifest, tmp_path):
    """A function (kind, *options) that runs `extract text` on TEXTS and returns the store's values of each."""
    source = write_manifest(tmp_path / "clips.csv", [{"clip": c, "path": "", "text": t} for c, t in TEXTS.items()])

    def extract(kind, *options):
        path = tmp_path / "text.h5"
        exact = ["--dtype", "float32", "--storage", "float32", "--device", "cpu", "-q"]
        call("extract", "text", source, "-o", path, "--encoder", checkpoints[kind], *exact, *options)
        with FeatureStore(path) as store:
            return [store.read([clip])[0] if store.pooled else store.frames(clip) for clip in TEXTS]

    return extract


@pytest.mark.parametrize("pool", POOLED)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_store_holds_the_pooled_states_of_transformers(kind, pool, stored, plain_states):
    values = stored(kind, "--layers", "all", "--pool", pool)
    for value, states in zip(values, plain_states(kind), strict=True):
        check_close(np.asarray(value), POOLED[pool](states))


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_the_sum_of_the_last_four_layers(kind, stored, plain_states):
    for value, states in zip(stored(kind, "--layers", "last-four-sum"), plain_states(kind), strict=True):
        check_close(np.asarray(value), states[-4:].sum(0).mean(0, keepdim=True))


# ---------------------------------------------------------------- padding, positions, models with two halves


def test_a_padding_token_without_an_embedding(tmp_path, load_as_extract):
    """Some checkpoints add the token to their tokenizer and not to their model."""
    folder = make_checkpoint("llama", tmp_path / "llama", vocab_size=40)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(folder)
    encoder = load_as_extract(folder, "text").encoder
    vocabulary = encoder.model.get_input_embeddings().num_embeddings
    assert encoder.tokenizer.pad_token_id >= vocabulary
    texts = ["wow", "what a day"]
    for text, states in zip(texts, encoder.encode(texts, LAYERS), strict=True):
        check_close(states, encoder.encode([text], LAYERS)[0])


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text"])
def test_a_long_text_where_positions_begin_after_that_of_padding(kind, tmp_path, load_as_extract):
    config = AutoConfig.for_model(kind, **{**SETTINGS, "max_position_embeddings": 34}, pad_token_id=3)
    save_model(AutoModel.from_config(config), tmp_path / kind)
    make_tokenizer(SPECIAL, wrap=True).save_pretrained(tmp_path / kind)
    encoder = load_as_extract(tmp_path / kind, "text").encoder
    offset = 2 if kind == "mpnet" else 4  # MPNet counts from position 2 whatever the configuration says
    assert encoder.max_tokens == 34 - offset
    (states,) = encoder.encode(["dog " * 100], LAYERS)
    assert states.shape[1] == encoder.max_tokens - 2
    assert encoder.truncated == 1


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_encoder_of_a_model_with_a_decoder(kind, tmp_path, load_as_extract):
    small = {
        "t5": {"d_kv": 8, "d_ff": 64, "num_layers": 4, "num_heads": 4},
        "bart": {f"{half}_{name}": 4 for half in ("encoder", "decoder") for name in ("layers", "attention_heads")},
    }[kind]
    config = AutoConfig.for_model(kind, d_model=32, vocab_size=60, **small)
    save_model(AutoModel.from_config(config), tmp_path / kind)
    make_tokenizer(SPECIAL, wrap=True).save_pretrained(tmp_path / kind)
    model = AutoModel.from_pretrained(tmp_path / kind).get_encoder().eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / kind)
    clip_encoder = load_as_extract(tmp_path / kind, "text")
    assert clip_encoder.layers == (0, 1, 2, 3, 4)
    encoded = clip_encoder.encoder.encode(list(TEXTS.values()), (0, 1, 2, 3))
    for text, states in zip(TEXTS.values(), encoded, strict=True):
        tokens = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden = model(tokens.input_ids, tokens.attention_mask, output_hidden_states=True).hidden_states[:-1]
        check_close(states, torch.stack([layer[0, 1:-1] for layer in hidden]))


def test_a_decoder_keeps_no_keys_and_values(checkpoints, load_as_extract):
    model = load_as_extract(checkpoints["llama"], "text").encoder.model
    assert model(input_ids=torch.tensor([[5, 6, 7]])).past_key_values is None

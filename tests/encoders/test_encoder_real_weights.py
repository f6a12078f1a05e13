"""Every layer of pretrained encoders, as `extract` computes it, equals plain transformers.

The environment variable MERTOOL_REAL_WEIGHTS names a folder with the checkpoints whisper-base, whisper-tiny-en and
minilm-l6 in Hugging Face format. Where one of them is absent its tests are skipped.

Clips of different length are encoded in one batch, and each by itself with transformers.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer

VARIABLE = "MERTOOL_REAL_WEIGHTS"
WHISPERS = ["whisper-tiny-en", "whisper-base"]
TEXT_ENCODER = "minilm-l6"
WINDOWS = ["30", "clip"]
TEXTS = [
    "I am so sad that we lost the dog again.",
    "wow",
    "What a day, and it is not even noon! " * 6,
    "[MASK] <s> ... 你好, señor",
    "?!",
]


def checkpoint(name: str) -> Path:
    """Return the folder of a pretrained checkpoint, or skip the test."""
    names = ", ".join([*WHISPERS, TEXT_ENCODER])
    if not (weights := os.environ.get(VARIABLE)):
        pytest.skip(f"{VARIABLE} is not set: give a folder with the checkpoints {names}")
    if not (Path(weights) / name / "config.json").is_file():
        pytest.skip(f"{weights} has no checkpoint '{name}': {VARIABLE} names a folder with {names}")
    return Path(weights) / name


@pytest.fixture(scope="module")
def waves(demo):
    """A function (window) that returns speech and noise, and with `clip` silence and a tone.

    They are of different length, and some do not end with a whole frame. A window of 30 s takes long, so fewer get one.
    """
    from mertool.media import read_audio

    draw = np.random.default_rng(0)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(9000) / 16_000)
    every = [
        read_audio(demo / "clips" / "spk01_001.mp4"),
        draw.normal(0, 0.1, 16_100).astype(np.float32),
        np.zeros(12_345, np.float32),
        tone.astype(np.float32),
    ]
    return lambda window: every if window == "clip" else every[:2]


def states_of_transformers(call, model, inputs, kept):
    """Return the layers (L, T, D) of one clip; `inputs` are those of the model, `kept` the frames of the clip."""
    dtype = next(model.parameters()).dtype
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    layers, _ = call(model, **inputs)
    return torch.stack([layer[kept].float() for layer in layers])


@pytest.fixture(scope="module")
def whisper_states(waves, reference):
    """A function (name, window, dtype) that calls transformers for each clip; for `clip`, a model cut to its length."""
    made = {}

    def states(name, window, dtype):
        if (name, window, dtype) not in made:
            folder = checkpoint(name)
            extractor = AutoFeatureExtractor.from_pretrained(folder)
            # Fused attention rounds bfloat16 in other places than the plain products of mertool on a CPU.
            attention = "eager" if dtype is torch.bfloat16 else "sdpa"
            model = AutoModel.from_pretrained(folder, torch_dtype=dtype, attn_implementation=attention)
            model = model.get_encoder().eval()
            positions = model.embed_positions.weight.detach()
            made[name, window, dtype] = []
            for wave in waves(window):
                n_frames = -(-len(wave) // 320)
                size = {}
                if window == "clip":
                    size = {"max_length": n_frames * 320}
                    model.config.max_source_positions = n_frames
                    model.embed_positions = torch.nn.Embedding.from_pretrained(positions[:n_frames])
                mels = extractor(wave, sampling_rate=16_000, return_tensors="pt", **size).input_features
                inputs = {"input_features": mels}
                made[name, window, dtype].append(states_of_transformers(reference, model, inputs, slice(n_frames)))
        return made[name, window, dtype]

    return states


@pytest.fixture(scope="module")
def text_states(reference):
    """A function (dtype) that calls transformers for each text."""

    def states(dtype):
        folder = checkpoint(TEXT_ENCODER)
        model, tokenizer = AutoModel.from_pretrained(folder, torch_dtype=dtype), AutoTokenizer.from_pretrained(folder)
        inputs = [tokenizer(text, return_tensors="pt") for text in TEXTS]
        # Without the tokens [CLS] and [SEP].
        return [states_of_transformers(reference, model.eval(), dict(tokens), slice(1, -1)) for tokens in inputs]

    return states


def check_float32(states, expected):
    """At most 1e-4, or 1e-4 of the largest value of a layer where that is above 22.

    Some frames of the last layers of a Whisper have single values of several hundreds, and rounding grows with them.
    """
    for number, (values, wanted) in enumerate(zip(states, expected, strict=True)):
        assert values.shape == wanted.shape
        largest = float(wanted.abs().max())
        tolerance = 1e-4 * (largest if largest > 22 else 1)
        assert float((values - wanted).abs().max()) <= tolerance, f"layer {number}"


def check_bfloat16(states, expected, expected_in_bfloat16):
    """Every frame has a cosine of at least 0.999 with float32, or about the lowest that transformers has in bfloat16.

    A few frames of a Whisper, those with very large values and their neighbours, lose more by rounding.
    """
    for number, (values, wanted) in enumerate(zip(states, expected, strict=True)):
        unavoidable = 1 - cosine_similarity(expected_in_bfloat16[number], wanted, dim=-1).min()
        tolerance = max(0.001, 1.5 * float(unavoidable))
        assert float(cosine_similarity(values, wanted, dim=-1).min()) >= 1 - tolerance, f"layer {number}"


def check_pooled(clip_encoder, states, expected, limit):
    """The mean over frames, as a store holds it, has a cosine of at least `limit` in every layer."""
    pooled = clip_encoder.poolings[0](states, "clip")
    assert float(cosine_similarity(pooled, expected.mean(1), dim=-1).min()) >= limit


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", WHISPERS)
def test_whisper_in_float32(name, window, whisper_states, load_as_extract, waves):
    clip_encoder = load_as_extract(checkpoint(name), "audio", window=window)
    encoded = clip_encoder.encoder.encode(waves(window), clip_encoder.layers)
    for states, expected in zip(encoded, whisper_states(name, window, torch.float32), strict=True):
        check_float32(states, expected)
        check_pooled(clip_encoder, states, expected, 1 - 1e-6)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", WHISPERS)
def test_whisper_in_bfloat16(name, window, whisper_states, load_as_extract, waves):
    clip_encoder = load_as_extract(checkpoint(name), "audio", dtype="bfloat16", window=window)
    encoded = clip_encoder.encoder.encode(waves(window), clip_encoder.layers)
    plain = [whisper_states(name, window, dtype) for dtype in (torch.float32, torch.bfloat16)]
    for states, expected, rounded in zip(encoded, *plain, strict=True):
        check_bfloat16(states, expected, rounded)
        check_pooled(clip_encoder, states, expected, 0.999)


def test_text_in_float32(text_states, load_as_extract):
    clip_encoder = load_as_extract(checkpoint(TEXT_ENCODER), "text")
    encoded = clip_encoder.encoder.encode(TEXTS, clip_encoder.layers)
    for states, expected in zip(encoded, text_states(torch.float32), strict=True):
        check_float32(states, expected)
        check_pooled(clip_encoder, states, expected, 1 - 1e-6)


def test_text_in_bfloat16(text_states, load_as_extract):
    clip_encoder = load_as_extract(checkpoint(TEXT_ENCODER), "text", dtype="bfloat16")
    encoded = clip_encoder.encoder.encode(TEXTS, clip_encoder.layers)
    for states, expected, rounded in zip(encoded, text_states(torch.float32), text_states(torch.bfloat16), strict=True):
        check_bfloat16(states, expected, rounded)
        check_pooled(clip_encoder, states, expected, 0.999)

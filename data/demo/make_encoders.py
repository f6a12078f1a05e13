"""Make three small encoders with random weights, so that the whole pipeline runs offline and in seconds.

    python make_encoders.py OUTPUT_FOLDER

They are real HuBERT, CLIP and BERT models in Hugging Face format, but nobody trained them: they show the
machinery, not the accuracy. The weights come from numpy's generator by parameter name, so they do not
depend on the version of torch or transformers. Needs torch >= 2.11, transformers >= 5.17 and numpy.
"""

import argparse
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
)

SEED = 11
COMPLETE = ("config.json", "model.safetensors", "README.md")  # a folder with these is left as it is

CARD = """---
license: apache-2.0
tags: [random-weights, test-fixture]
---
# {name}

A {kind} with **random weights** (seed {seed}), made by `data/demo/make_encoders.py` of this
project. Nobody trained it. It lets the pipeline run offline in seconds; it shows the machinery and not the
accuracy. For real work, use a pretrained encoder of the same class.
"""

# The words of the tokenizer. Any other word is spelled with letters, so every English text encodes.
WORDS = [
    "a",
    "about",
    "after",
    "again",
    "alone",
    "all",
    "already",
    "also",
    "always",
    "am",
    "an",
    "and",
    "angry",
    "another",
    "any",
    "are",
    "as",
    "at",
    "away",
    "back",
    "bad",
    "be",
    "because",
    "been",
    "before",
    "believe",
    "best",
    "better",
    "big",
    "bring",
    "brother",
    "but",
    "by",
    "call",
    "came",
    "can",
    "car",
    "care",
    "come",
    "comes",
    "could",
    "cried",
    "cry",
    "dare",
    "day",
    "dear",
    "did",
    "dinner",
    "do",
    "doctor",
    "does",
    "dog",
    "done",
    "door",
    "down",
    "empty",
    "enough",
    "even",
    "ever",
    "every",
    "expect",
    "fault",
    "fear",
    "feel",
    "fell",
    "few",
    "find",
    "first",
    "for",
    "found",
    "friend",
    "from",
    "fun",
    "garden",
    "gave",
    "get",
    "give",
    "glad",
    "go",
    "gone",
    "good",
    "got",
    "great",
    "had",
    "happen",
    "happens",
    "happy",
    "has",
    "hate",
    "have",
    "he",
    "hear",
    "help",
    "her",
    "here",
    "him",
    "his",
    "home",
    "hope",
    "house",
    "how",
    "hurt",
    "hurts",
    "i",
    "if",
    "in",
    "is",
    "it",
    "its",
    "just",
    "keep",
    "knew",
    "know",
    "last",
    "late",
    "laugh",
    "leave",
    "left",
    "letter",
    "lie",
    "like",
    "list",
    "listen",
    "little",
    "long",
    "look",
    "looks",
    "lost",
    "love",
    "lovely",
    "made",
    "make",
    "makes",
    "man",
    "maybe",
    "me",
    "mean",
    "meet",
    "meeting",
    "miss",
    "moment",
    "monday",
    "money",
    "more",
    "morning",
    "most",
    "mother",
    "much",
    "my",
    "near",
    "need",
    "nervous",
    "never",
    "new",
    "news",
    "next",
    "nice",
    "night",
    "no",
    "not",
    "nothing",
    "now",
    "of",
    "off",
    "office",
    "often",
    "oh",
    "old",
    "on",
    "once",
    "one",
    "only",
    "or",
    "other",
    "our",
    "out",
    "over",
    "page",
    "paper",
    "party",
    "people",
    "perhaps",
    "phone",
    "place",
    "please",
    "put",
    "quite",
    "read",
    "ready",
    "really",
    "right",
    "room",
    "ruined",
    "sad",
    "safe",
    "said",
    "same",
    "saw",
    "say",
    "says",
    "school",
    "second",
    "see",
    "she",
    "should",
    "sick",
    "side",
    "sister",
    "sit",
    "sleep",
    "slow",
    "smile",
    "so",
    "some",
    "something",
    "soon",
    "sorry",
    "still",
    "stop",
    "such",
    "sure",
    "take",
    "talk",
    "talked",
    "tell",
    "than",
    "thank",
    "that",
    "the",
    "their",
    "them",
    "then",
    "there",
    "these",
    "they",
    "thing",
    "think",
    "this",
    "those",
    "thought",
    "time",
    "to",
    "today",
    "together",
    "told",
    "tomorrow",
    "tonight",
    "too",
    "touch",
    "train",
    "two",
    "under",
    "until",
    "up",
    "upset",
    "us",
    "usual",
    "very",
    "wait",
    "walk",
    "want",
    "was",
    "watch",
    "way",
    "we",
    "week",
    "well",
    "went",
    "were",
    "what",
    "when",
    "where",
    "which",
    "while",
    "who",
    "why",
    "will",
    "wish",
    "with",
    "wonderful",
    "word",
    "work",
    "worried",
    "worry",
    "would",
    "wow",
    "write",
    "wrong",
    "year",
    "yes",
    "yesterday",
    "you",
    "your",
    "yours",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MARKS = list(".,!?'\"-:;()&%$/") + ["\u2019", "\u201c", "\u201d", "\u2026"]


# ---------------------------------------------------------------- weights

Rule = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(scale: float) -> Rule:
    """Normal numbers with this standard deviation."""
    return lambda rng, shape: rng.normal(0, scale, shape)


def constant(value: float) -> Rule:
    """The same number everywhere."""
    return lambda rng, shape: np.full(shape, value)


def fan_in(gain: float) -> Rule:
    """Normal numbers that keep the variance (times `gain` squared) from input to output."""
    return lambda rng, shape: rng.normal(0, gain / np.sqrt(np.prod(shape[1:])), shape)


def tones(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Band-pass filters for the first convolution over the waveform: windowed cosines of 100 to 7000 Hz."""
    out, _, kernel = shape
    hertz = np.geomspace(100, 7000, out)[:, None]
    wave = np.cos(2 * np.pi * hertz * np.arange(kernel) / 16000 + rng.uniform(0, 2 * np.pi, (out, 1)))
    wave *= np.hanning(kernel + 2)[1:-1]
    return (wave / np.linalg.norm(wave, axis=1, keepdims=True))[:, None, :]


def cascade(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Filters that hear mostly one channel of the layer below, smoothed or as it changes."""
    out, channels, kernel = shape
    filters = rng.normal(0, 0.25 / np.sqrt(channels * kernel), shape)
    for o in range(out):
        change = rng.random() < 0.25
        filters[o, o % channels] += np.linspace(-1, 1, kernel) if change else np.full(kernel, 1.4 / kernel)
    return filters


def smooth_patches(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Filters over image patches: random mixtures of low cosines, mostly of grey, blind to the mean."""
    out, channels, size, _ = shape
    steps = np.cos(np.pi * (np.arange(size) + 0.5) * np.arange(6)[:, None] / size)  # (6 frequencies, size)
    order = np.add.outer(np.arange(6), np.arange(6))
    mixture = rng.normal(0, 1, (out, 6, 6)) * np.where(order == 0, 0, 1 / np.maximum(order, 1))
    grey = np.einsum("oij,ix,jy->oxy", mixture, steps, steps)
    colour = 1 + 0.25 * rng.normal(0, 1, (out, channels))
    filters = grey[:, None] * colour[:, :, None, None]
    return filters / np.linalg.norm(filters.reshape(out, -1), axis=1)[:, None, None, None] / np.sqrt(size)


def smooth_places(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Position embeddings that change slowly over the image, so that neighbours are treated alike."""
    count, width = shape
    side = round(np.sqrt(count - 1))  # the first position is the class token's
    steps = np.cos(np.pi * (np.arange(side) + 0.5) * np.arange(5)[:, None] / side)
    waves = np.einsum("oij,ix,jy->xyo", rng.normal(0, 1, (width, 5, 5)), steps, steps).reshape(-1, width)
    return np.vstack([rng.normal(0, 1, (1, width)), 2.5 * waves / waves.std()])


# The first rule whose pattern is found in a parameter's name fills it. Queries and keys are large enough
# that a head looks at something; biases are not zero, so that a rectifier keeps how strong its input was;
# and what a block adds is small against its input, so that many layers do not drown it.
COMMON: list[tuple[str, Rule]] = [
    (r"(norm|LayerNorm|layrnorm)\.weight$", constant(1.0)),
    (r"(norm|LayerNorm|layrnorm)\.bias$", constant(0.0)),
    (r"(q_proj|k_proj|query|key)\.weight$", fan_in(1.6)),
    (r"(fc1|intermediate_dense|intermediate\.dense)\.weight$", fan_in(1.4)),
    (r"(out_proj|fc2|output_dense|output\.dense)\.weight$", fan_in(0.5)),
    (r"\.weight$", fan_in(1.0)),
    (r"\.bias$", normal(0.2)),
]
AUDIO_RULES: list[tuple[str, Rule]] = [
    (r"conv_layers\.0\.conv\.weight$", tones),
    (r"conv_layers\.0\.conv\.bias$", normal(0.5)),
    (r"conv_layers\.\d\.layer_norm\.bias$", normal(0.3)),
    (r"conv_layers\.\d\.conv\.weight$", cascade),
    (r"pos_conv_embed\.conv\..*original0$", constant(0.15)),
    (r"pos_conv_embed\.conv\..*original1$", normal(1.0)),
    (r"masked_spec_embed$", normal(1.0)),
]
VISION_RULES: list[tuple[str, Rule]] = [
    (r"patch_embedding\.weight$", smooth_patches),
    (r"position_embedding\.weight$", smooth_places),
    (r"class_embedding$", normal(1.0)),
]
TEXT_RULES: list[tuple[str, Rule]] = [
    (r"word_embeddings\.weight$", normal(1.0)),
    (r"(position|token_type)_embeddings\.weight$", normal(0.1)),
]


def fill(model: PreTrainedModel, rules: list[tuple[str, Rule]]) -> PreTrainedModel:
    """Fill every parameter by the first rule for its name; the numbers depend on `SEED` and the name."""
    for name, parameter in model.named_parameters():
        rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
        rule = next(rule for pattern, rule in rules + COMMON if re.search(pattern, name))
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(rule(rng, tuple(parameter.shape)).astype(np.float32)))
    return model.eval()


# ---------------------------------------------------------------- encoders


def make_hubert(folder: Path) -> None:
    """HuBERT in the form of the LARGE models: layer norm in the convolutions, norm before each block."""
    config = HubertConfig(
        hidden_size=96,
        num_hidden_layers=8,
        num_attention_heads=4,
        intermediate_size=192,
        conv_dim=(32, 32, 48, 48, 48, 64, 64),
        conv_stride=(5, 2, 2, 2, 2, 2, 2),
        conv_kernel=(10, 3, 3, 3, 3, 2, 2),
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
        layerdrop=0.0,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
        vocab_size=32,
    )
    fill(HubertModel(config), AUDIO_RULES).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=16000,
        padding_value=0.0,
        do_normalize=True,
        return_attention_mask=True,
    ).save_pretrained(folder)


def make_clip(folder: Path) -> None:
    """The vision tower of CLIP: 224-pixel images in patches of 16."""
    config = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        projection_dim=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=224,
        patch_size=16,
    )
    fill(CLIPVisionModel(config), VISION_RULES).save_pretrained(folder)
    CLIPImageProcessor(
        do_resize=True,
        size={"shortest_edge": 224},
        do_center_crop=True,
        crop_size={"height": 224, "width": 224},
    ).save_pretrained(folder)


def make_bert(folder: Path) -> None:
    """BERT over the words of `WORDS`, letters for the rest."""
    pieces = SPECIAL + MARKS + list(LETTERS) + [f"##{letter}" for letter in LETTERS]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces + WORDS))}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=256,
    )
    fill(BertModel(config), TEXT_RULES).save_pretrained(folder)
    BertTokenizerFast(vocab=vocabulary, do_lower_case=True, model_max_length=256).save_pretrained(folder)


ENCODERS = {
    "tiny-random-hubert": ("HuBERT sound encoder (LARGE form, 8 layers)", make_hubert),
    "tiny-random-clip": ("CLIP vision encoder (4 layers)", make_clip),
    "tiny-random-bert": ("BERT text encoder (3 layers)", make_bert),
}


def make_encoders(folder: Path) -> dict[str, Path]:
    """Make the encoders that `folder` does not have yet; the folder of each by name."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for name, (kind, make) in ENCODERS.items():
        made[name] = folder / name
        if all((made[name] / file).is_file() for file in COMPLETE):
            continue
        with tempfile.TemporaryDirectory(dir=folder) as temporary:  # beside its place: the rename is atomic
            draft = Path(temporary) / name
            make(draft)
            (draft / "README.md").write_text(CARD.format(name=name, kind=kind, seed=SEED), encoding="utf-8")
            shutil.rmtree(made[name], ignore_errors=True)
            draft.rename(made[name])
    return made


def main() -> None:
    """Make the encoders and print their folders."""
    parser = argparse.ArgumentParser(description="Make three small encoders with random weights.")
    parser.add_argument("folder", type=Path, help="where the folders of the encoders go")
    for path in make_encoders(parser.parse_args().folder).values():
        print(path)


if __name__ == "__main__":
    main()

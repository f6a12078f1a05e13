"""Encoders of the real shapes with random weights, in Hugging Face format. `tiny` shapes are for a smoke test."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from report import ROOT

LARGE_FORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
BLOCKS_OF_LARGE = {"num_hidden_layers": 24, "num_attention_heads": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "hubert-base": {},
    "hubert-large": {**LARGE_FORM, **BLOCKS_OF_LARGE, "hidden_size": 1024, "intermediate_size": 4096},
    "clip-vit-b16": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
    },
    "clip-vit-l14": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
    "bert-base": {},
}
TINY_BLOCKS = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
TINY_SOUND = {"conv_dim": (32,) * 7, "num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 8}
TINY: dict[str, dict[str, Any]] = {
    "hubert-base": {**TINY_BLOCKS, **TINY_SOUND},
    "hubert-large": {**TINY_BLOCKS, **TINY_SOUND},
    "clip-vit-b16": TINY_BLOCKS,
    "clip-vit-l14": TINY_BLOCKS,
    "bert-base": TINY_BLOCKS,
}


@cache
def demo() -> Any:
    """The module data/demo/make_encoders.py: its weights let features depend on what an encoder is given."""
    spec = importlib.util.spec_from_file_location("make_encoders", ROOT / "data" / "demo" / "make_encoders.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_model(name: str, folder: Path, tiny: bool = False) -> Path:
    """Make the encoder `name` in `folder`, unless it is there; its folder."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model_folder = folder / name
    if not model_folder.exists():
        shape = {**SHAPES[name], **(TINY[name] if tiny else {})}
        make = {"hubert": _make_hubert, "clip": _make_clip, "bert": _make_bert}[name.split("-")[0]]
        make(model_folder, shape)
    return model_folder


def _make_hubert(folder: Path, shape: dict[str, Any]) -> None:
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    model = HubertModel(HubertConfig(**shape))
    demo().fill(model, demo().AUDIO_RULES).save_pretrained(folder)
    padded_with_mask = model.config.feat_extract_norm == "layer"
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=padded_with_mask).save_pretrained(folder)


def _make_clip(folder: Path, shape: dict[str, Any]) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    demo().fill(CLIPVisionModel(CLIPVisionConfig(**shape)), demo().VISION_RULES).save_pretrained(folder)
    crop = {"height": shape["image_size"], "width": shape["image_size"]}
    CLIPImageProcessor(size={"shortest_edge": shape["image_size"]}, crop_size=crop).save_pretrained(folder)


def _make_bert(folder: Path, shape: dict[str, Any]) -> None:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    demo().fill(BertModel(BertConfig(**shape)), demo().TEXT_RULES).save_pretrained(folder)
    letters = [*demo().LETTERS, *(f"##{letter}" for letter in demo().LETTERS)]
    pieces = dict.fromkeys([*demo().SPECIAL, *demo().MARKS, *letters, *demo().WORDS])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    BertTokenizerFast(vocab=vocabulary, do_lower_case=True, model_max_length=512).save_pretrained(folder)

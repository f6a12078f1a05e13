"""Features by the engine equal those of transformers called directly on one clip, for every family."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

from mertool import encoders
from mertool.extraction.clip_encoder import EncoderAssets
from mertool.extraction.decoding import DecodedClip
from mertool.extraction.pipeline import encode_and_write
from mertool.extraction.plan import WorkItem
from mertool.extraction.targets import StoreTarget
from mertool.features import Recipe
from mertool.manifest import Clip
from mertool.store import FeatureStore

SPEECH = ["hubert", "hubert_group", "wav2vec2", "wav2vec2_group", "wavlm", "wavlm_group", "data2vec", "whisper"]
IMAGES = ["clip", "clip_full", "siglip", "vit", "dinov2"]
TEXTS = ["bert", "roberta", "llama"]
FAMILIES = [(n, "audio") for n in SPEECH] + [(n, "video") for n in IMAGES] + [(n, "text") for n in TEXTS]
RATE = 16_000


SIZE = 64  # of the pictures the tiny encoders take


def contents(name: str, modality: str) -> list:
    """Three clips of different lengths; crops of 96 pixels, but for encoders that resize in a way of their own."""
    draw = np.random.default_rng(0)
    if modality == "audio":
        return [draw.normal(0, 0.1, round(seconds * RATE)).astype(np.float32) for seconds in (1.3, 0.7, 1.1)]
    if modality == "video":
        side = 96 if name in ("clip", "clip_full") else SIZE
        return [draw.integers(0, 256, (frames, side, side, 3), np.uint8) for frames in (3, 1, 2)]
    return ["we lost the dog again and i am so sad", "wow", "what a day"]


def directly(name, folder, content, modality, reference):
    """Means over time of every layer, (L, D), by transformers' own classes and one clip."""
    model = AutoModel.from_pretrained(folder).eval()
    if modality == "text":
        tokens = AutoTokenizer.from_pretrained(folder)(content, return_tensors="pt")
        layers, _ = reference(model, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        words = slice(None) if name == "llama" else slice(1, -1)
        return torch.stack([layer[words].mean(0) for layer in layers])
    if modality == "video":
        # Crops are resized as CLIP's are and never cut; the processors of ViT and DINOv2 would do otherwise.
        whole = {"do_resize": False, "do_center_crop": False} if content.shape[1] == SIZE else {}
        pixels = AutoImageProcessor.from_pretrained(folder)(list(content), return_tensors="pt", **whole).pixel_values
        model = getattr(model, "vision_model", model)
        frames = [reference(model, pixel_values=frame[None])[0] for frame in pixels]
        one = (lambda tokens: tokens.mean(0)) if name == "siglip" else (lambda tokens: tokens[0])
        return torch.stack([torch.stack([one(layer) for layer in layers]) for layers in frames]).mean(0)
    inputs = AutoFeatureExtractor.from_pretrained(folder)(content, sampling_rate=RATE, return_tensors="pt")
    if name == "whisper":
        layers, _ = reference(model.get_encoder(), input_features=inputs.input_features)
        return torch.stack([layer[: -(-len(content) // 320)].mean(0) for layer in layers])
    return torch.stack([layer.mean(0) for layer in reference(model, input_values=inputs.input_values)[0]])


def by_engine(tmp_path, name, folder, modality, dtype, most) -> np.ndarray:
    """(clips, L, D) of a store that the engine wrote; with a limit the clips share a batch."""
    source = encoders.resolve_encoder(str(folder), modality)
    layers = tuple(range(encoders.count_layers(source) + 1))
    recipe = Recipe(
        modality=modality,
        encoder="tiny",
        weights="w",
        layers=layers,
        pool="mean",
        compute_dtype=dtype,
        storage_dtype="float32",
    )
    target = StoreTarget(path=tmp_path / "s.h5", recipe=recipe)
    encoder = EncoderAssets(source).load([target], torch.device("cpu"), most)
    outcomes = [
        (WorkItem(Clip(clip=f"c{number}", path=tmp_path), "d"), DecodedClip(content, seconds=1.0))
        for number, content in enumerate(contents(name, modality))
    ]
    with target.open_writer() as writer:
        stats = encode_and_write(
            outcomes, total=len(outcomes), encoder=encoder, writers=[writer], on_progress=lambda *_: None
        )
        writer.finish(item.clip.clip for item, _ in outcomes)
    assert stats.extracted == len(outcomes)
    with FeatureStore(target.path) as store:
        return store.read()


@pytest.mark.parametrize("most", [0.0, 1000.0], ids=["alone", "batched"])
@pytest.mark.parametrize(("name", "modality"), FAMILIES)
def test_float32_features_are_those_of_transformers(name, modality, most, tmp_path, tiny_encoders, reference):
    folder = tiny_encoders[name]
    found = by_engine(tmp_path, name, folder, modality, "float32", most)
    for ours, content in zip(found, contents(name, modality), strict=True):
        expected = directly(name, folder, content, modality, reference).numpy()
        assert ours.shape == expected.shape
        assert np.linalg.norm(ours - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize(("name", "modality"), FAMILIES)
def test_bfloat16_features_point_where_those_of_transformers_do(name, modality, tmp_path, tiny_encoders, reference):
    folder = tiny_encoders[name]
    found = by_engine(tmp_path, name, folder, modality, "bfloat16", 1000.0)
    for ours, content in zip(found, contents(name, modality), strict=True):
        expected = directly(name, folder, content, modality, reference).numpy()
        for layer, (a, b) in enumerate(zip(ours, expected, strict=True)):
            assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= 0.999, f"layer {layer}"

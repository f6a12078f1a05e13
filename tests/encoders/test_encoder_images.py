"""Pixels as the image encoders were trained on them."""

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def picture(demo):
    from mertool.media import read_frames

    _, frame = next(read_frames(demo / "clips" / "spk01_001.mp4", 1, 1))
    return np.ascontiguousarray(frame[:224, :224])


@pytest.mark.parametrize("side", [224, 120, 40])
def test_resizing_is_pil_bicubic_within_two_grey_levels(side, picture, load_tiny):
    encoder = load_tiny("vit", "video")
    crop = np.ascontiguousarray(picture[:side, :side])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    grey = ((encoder.normalize_pixels(encoder.prepare(crop[None]))[0] * std + mean) * 255).permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(crop).resize((64, 64), Image.Resampling.BICUBIC), np.float32)
    assert np.abs(grey - expected).max() <= 2.01


def test_a_crop_of_the_encoders_size_is_only_normalised(picture, load_tiny):
    encoder = load_tiny("clip", "video")
    expected = (picture / 255 - np.array(encoder.mean)) / np.array(encoder.std)
    np.testing.assert_allclose(
        encoder.normalize_pixels(encoder.prepare(picture[None]))[0].permute(1, 2, 0), expected, atol=1e-5
    )


def test_clip_pixels_equal_the_image_processor(picture, tiny_encoders, load_tiny):
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(tiny_encoders["clip"])
    expected = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    encoder = load_tiny("clip", "video")
    torch.testing.assert_close(encoder.normalize_pixels(encoder.prepare(picture[None])), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "size"), [("clip", 224), ("clip_full", 64), ("siglip", 64), ("vit", 64), ("dinov2", 64)]
)
def test_the_input_size_is_the_processors(name, size, load_tiny):
    assert load_tiny(name, "video").size == size


def test_siglip_is_the_mean_over_patches_and_the_others_the_class_token(load_tiny):
    has = {name: load_tiny(name, "video").has_class_token for name in ("clip", "clip_full", "siglip", "vit", "dinov2")}
    assert has == {"clip": True, "clip_full": True, "siglip": False, "vit": True, "dinov2": True}

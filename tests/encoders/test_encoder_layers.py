"""Layer n is the output of block n, and equals what transformers computes when it is called directly."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

SPEECH = ["hubert", "hubert_group", "wav2vec2", "wav2vec2_group", "wavlm", "wavlm_group", "data2vec"]
IMAGES = ["clip", "clip_full", "siglip", "vit", "dinov2"]
TEXTS = ["bert", "roberta", "llama"]


def agree(hidden, expected, states, frames=slice(None)):
    """`hidden` (L, T, D) equals the hooked layers everywhere, and hidden_states below the last."""
    assert len(hidden) == len(expected) == len(states)
    for number, (ours, hooked) in enumerate(zip(hidden, expected, strict=True)):
        torch.testing.assert_close(
            ours, hooked[frames], atol=1e-4, rtol=1e-4, msg=lambda m, n=number: f"layer {n}: {m}"
        )
    for ours, state in zip(hidden[:-1], states[:-1], strict=True):
        torch.testing.assert_close(ours, state[frames], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def wave(demo):
    from mertool.media import read_audio

    return read_audio(demo / "clips" / "spk01_001.mp4")


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)


@pytest.mark.parametrize("name", SPEECH)
def test_speech_layers(name, tiny_encoders, load_tiny, wave, reference):
    encoder = load_tiny(name, "audio")
    model = AutoModel.from_pretrained(tiny_encoders[name]).eval()
    inputs = AutoFeatureExtractor.from_pretrained(tiny_encoders[name])(wave, sampling_rate=16_000, return_tensors="pt")
    layers, states = reference(model, input_values=inputs.input_values)
    hidden = encoder.encode([wave], tuple(range(encoder.num_layers + 1)))[0]
    assert hidden.shape == (encoder.num_layers + 1, encoder.num_frames(len(wave)), encoder.channels)
    agree(hidden, layers, states)


def test_whisper_layers(tiny_encoders, load_tiny, wave, reference):
    encoder = load_tiny("whisper", "audio")
    model = AutoModel.from_pretrained(tiny_encoders["whisper"]).get_encoder().eval()
    inputs = AutoFeatureExtractor.from_pretrained(tiny_encoders["whisper"])(
        wave, sampling_rate=16_000, return_tensors="pt"
    )
    layers, states = reference(model, input_features=inputs.input_features)
    real = -(-len(wave) // 320)  # 50 frames a second: the rest of the 30 s window is silence
    agree(encoder.encode([wave], tuple(range(4)))[0], layers, states, slice(real))


def test_whisper_layers_of_a_window_that_follows_the_clip(tiny_encoders, load_tiny, wave, reference):
    """They are those of a Whisper whose table of positions ends with the clip."""
    encoder = load_tiny("whisper", "audio")
    encoder.set_window("clip")
    model = AutoModel.from_pretrained(tiny_encoders["whisper"]).get_encoder().eval()
    wave = wave[: len(wave) // 320 * 320 - 100]  # the last frame is not whole
    frames = -(-len(wave) // 320)
    mels = AutoFeatureExtractor.from_pretrained(tiny_encoders["whisper"])(
        wave, sampling_rate=16_000, max_length=frames * 320, return_tensors="pt"
    )
    model.config.max_source_positions = frames
    model.embed_positions = torch.nn.Embedding.from_pretrained(model.embed_positions.weight[:frames].detach())
    layers, states = reference(model, input_features=mels.input_features)
    hidden = encoder.encode([wave], tuple(range(4)))[0]
    assert hidden.shape[1] == frames
    agree(hidden, layers, states)


@pytest.mark.parametrize("name", IMAGES)
def test_image_layers(name, tiny_encoders, load_tiny, reference):
    encoder = load_tiny(name, "video")
    crops = np.random.default_rng(0).integers(0, 256, (2, encoder.size, encoder.size, 3), np.uint8)
    model = AutoModel.from_pretrained(tiny_encoders[name]).eval()
    model = getattr(model, "vision_model", model)
    processor = AutoImageProcessor.from_pretrained(tiny_encoders[name])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    for number, crop in enumerate(crops):
        pixels = (torch.from_numpy(crop).permute(2, 0, 1) / 255 - mean) / std
        layers, states = reference(model, pixel_values=pixels[None])
        hidden = encoder.encode([crops], tuple(range(encoder.num_layers + 1)))[0][:, number]
        pool = (lambda tokens: tokens.mean(0)) if name == "siglip" else (lambda tokens: tokens[0])
        agree(hidden, [pool(layer) for layer in layers], [pool(state) for state in states])


@pytest.mark.parametrize("name", TEXTS)
def test_text_layers(name, tiny_encoders, load_tiny, reference):
    encoder = load_tiny(name, "text")
    model = AutoModel.from_pretrained(tiny_encoders[name]).eval()
    tokens = AutoTokenizer.from_pretrained(tiny_encoders[name])("we lost the dog", return_tensors="pt")
    layers, states = reference(model, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    words = slice(None) if name == "llama" else slice(1, -1)  # without the first and the last special token
    hidden = encoder.encode(["we lost the dog"], tuple(range(encoder.num_layers + 1)))[0]
    assert hidden.shape[1] == 4
    agree(hidden, layers, states, words)


@pytest.mark.parametrize(
    ("name", "modality"),
    [(n, "audio") for n in [*SPEECH, "whisper"]] + [(n, "video") for n in IMAGES] + [(n, "text") for n in TEXTS],
)
def test_layers_counted_without_loading(name, modality, tiny_encoders, load_tiny):
    from mertool.encoders import count_layers, resolve_encoder

    assert count_layers(resolve_encoder(str(tiny_encoders[name]), modality)) == load_tiny(name, modality).num_layers


def test_kept_layers_come_in_the_order_asked(load_tiny, wave):
    encoder = load_tiny("hubert", "audio")
    every = encoder.encode([wave], tuple(range(9)))[0]
    chosen = encoder.encode([wave], (0, 3, 8))[0]
    assert torch.equal(chosen, every[[0, 3, 8]])


def test_layers_above_the_highest_kept_change_nothing(load_tiny, wave):
    from mertool.encoders.hidden_states import truncate_after

    encoder = load_tiny("hubert", "audio")
    before = encoder.encode([wave], (2, 5))[0]
    truncate_after(encoder.blocks, 5)
    assert len(encoder.blocks) == 5
    assert torch.equal(encoder.encode([wave], (2, 5))[0], before)


def test_train_mode_masks_and_skips_nothing(tiny_encoders, load_tiny, wave):
    """SpecAugment and layerdrop of the checkpoint's configuration stay off while adapters are trained."""
    encoder = load_tiny("hubert_group", "audio")
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    encoder.model.feature_projection.dropout.p = 0.0
    quiet = encoder.encode([wave], (4,))[0]
    encoder.model.train()
    assert not encoder.model.config.apply_spec_augment
    assert encoder.model.config.layerdrop == 0.0
    for _ in range(3):
        torch.testing.assert_close(encoder.encode([wave], (4,))[0], quiet, atol=0.05, rtol=0.05)

"""A clip's features do not depend on the clips it is encoded with; long and short clips."""

import numpy as np
import pytest
import torch
from torch import nn

from mertool.encoders.batch_invariance import find_norm_over_time, is_batch_invariant
from mertool.encoders.masked_group_norm import MaskedGroupNorm
from mertool.errors import ClipError, MertoolError

SECOND = 16_000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * SECOND)).astype(np.float32)


@pytest.mark.parametrize(
    "name",
    ["hubert", "hubert_group", "hubert_batch_norm", "wav2vec2", "wavlm", "wavlm_group", "data2vec", "whisper"],
)
def test_speech_in_a_batch_equals_alone(name, load_tiny):
    encoder = load_tiny(name, "audio")
    layers = tuple(range(encoder.num_layers + 1))
    waves = [noise(0.73), noise(1.5, 1), noise(0.3, 2)]
    for wave, together in zip(waves, encoder.encode(waves, layers), strict=True):
        alone = encoder.encode([wave], layers)[0]
        assert together.shape == alone.shape
        assert torch.linalg.norm(together - alone) <= 1e-4 * torch.linalg.norm(alone)


def test_whisper_clips_in_a_batch_equal_alone(load_tiny):
    """Each with a window as long as the clip: the zeros of the batch reach neither convolutions nor attention."""
    encoder = load_tiny("whisper", "audio")
    encoder.set_window("clip")
    waves = [noise(0.73), noise(1.5, 1), 0.01 * noise(0.3, 2), noise(0.011, 3)]
    for wave, together in zip(waves, encoder.encode(waves, (0, 1, 2, 3)), strict=True):
        alone = encoder.encode([wave], (0, 1, 2, 3))[0]
        assert together.shape == alone.shape
        assert torch.linalg.norm(together - alone) <= 1e-5 * torch.linalg.norm(alone)


def test_padding_is_used_where_it_changes_nothing(load_tiny):
    names = ["hubert", "hubert_group", "wav2vec2", "wav2vec2_group", "wavlm", "wavlm_group"]
    assert all(load_tiny(name, "audio").supports_padding for name in names)
    assert all(load_tiny(name, "text").supports_padding for name in ("bert", "roberta", "llama"))


@pytest.mark.parametrize("name", ["hubert_group", "wavlm_group"])
def test_the_lengths_of_a_batch_do_not_outlive_it(name, load_tiny):
    """finetune calls the front end by itself; the test of padding at load is a batch, too."""
    encoder = load_tiny(name, "audio")
    wave = torch.from_numpy(noise(0.5))[None]
    fresh = encoder.model.feature_extractor(wave)
    encoder.encode([noise(0.3), noise(0.8, 1)], (1,))
    assert torch.equal(encoder.model.feature_extractor(wave), fresh)
    assert encoder.masked_norm.lengths is None


@pytest.mark.parametrize("by_layers", [True, False])
def test_batch_norm_over_time_refuses_padding(by_layers, load_tiny, monkeypatch):
    """By the layers of the model, and where these are unknown by the test at load."""
    unknown = "mertool.encoders.families.wav2vec2." + ("_is_batch_invariant" if by_layers else "find_norm_over_time")
    monkeypatch.setattr(unknown, (lambda _: True) if by_layers else (lambda _: None))
    encoder = load_tiny("hubert_batch_norm", "audio")
    assert not encoder.supports_padding
    encoder.supports_padding = True  # which shows that there was a reason
    waves = [noise(0.3), noise(0.8, 1)]
    assert not torch.allclose(encoder.encode(waves, (4,))[0], encoder.encode(waves[:1], (4,))[0], atol=1e-2)


@pytest.mark.parametrize(
    ("layer", "name"),
    [(nn.BatchNorm1d(4), "1"), (nn.InstanceNorm1d(4), "1"), (nn.GroupNorm(2, 4), "1"), (nn.LayerNorm(4), None)],
)
def test_norms_with_statistics_over_time_are_found(layer, name):
    masked = MaskedGroupNorm(nn.GroupNorm(4, 4), kernel=10, stride=5)
    assert find_norm_over_time(nn.Sequential(masked, layer)) == name


def test_a_text_model_that_ignores_its_mask_gets_texts_of_equal_length(load_tiny, monkeypatch):
    encoder = load_tiny("bert", "text")
    shorter, longer = encoder.tokens_for_test(3), encoder.tokens_for_test(8)
    assert is_batch_invariant(encoder, shorter, longer, dtype=torch.float32)
    forward = encoder.model.forward
    monkeypatch.setattr(encoder.model, "forward", lambda input_ids, attention_mask: forward(input_ids=input_ids))
    assert not is_batch_invariant(encoder, shorter, longer, dtype=torch.float32)
    encoder.supports_padding = False
    together = encoder.encode_prepared([longer, shorter, longer], (1, 3))
    for states, prepared in zip(together, (longer, shorter, longer), strict=True):
        torch.testing.assert_close(states, encoder.encode_prepared([prepared], (1, 3))[0])


def test_a_model_of_nan_gets_no_padding(load_tiny):
    encoder = load_tiny("bert", "text")
    with torch.no_grad():
        encoder.model.embeddings.LayerNorm.bias.fill_(torch.nan)
    assert not is_batch_invariant(encoder, encoder.tokens_for_test(3), encoder.tokens_for_test(8), dtype=torch.float32)


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_text_in_a_batch_equals_alone(name, load_tiny):
    encoder = load_tiny(name, "text")
    texts = ["wow", "we lost the dog again and i am so sad", "what a day"]
    for text, together in zip(texts, encoder.encode(texts, (1, 3)), strict=True):
        torch.testing.assert_close(together, encoder.encode([text], (1, 3))[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_images_in_a_batch_equal_alone(name, load_tiny):
    encoder = load_tiny(name, "video")
    clips = [np.random.default_rng(n).integers(0, 256, (n, 64, 64, 3), np.uint8) for n in (2, 1, 70)]
    for clip, together in zip(clips, encoder.encode(clips, (2, encoder.num_layers)), strict=True):
        assert together.shape == (2, len(clip), encoder.channels)
        alone = torch.cat([encoder.encode([frame[None]], (2, encoder.num_layers))[0] for frame in clip[:3]], dim=1)
        torch.testing.assert_close(together[:, :3], alone, atol=1e-4, rtol=1e-4)


def test_a_clip_longer_than_thirty_seconds_is_cut_in_equal_pieces(load_tiny):
    encoder = load_tiny("hubert_group", "audio")
    wave = noise(61)
    pieces = [encoder.encode([piece], (4,))[0] for piece in np.array_split(wave, 3)]
    torch.testing.assert_close(encoder.encode([wave], (4,))[0], torch.cat(pieces, dim=1))


def test_thirty_seconds_are_one_piece(load_tiny):
    encoder = load_tiny("hubert_group", "audio")
    wave = noise(30)
    assert encoder.encode([wave], (1,))[0].shape[1] == encoder.num_frames(len(wave))


def test_a_long_clip_is_normalised_as_a_whole(load_tiny):
    """A loud and a silent half layers their difference: the pieces are not normalised one by one."""
    encoder = load_tiny("hubert", "audio")
    wave = np.concatenate([noise(20), 0.01 * noise(20, 1)])
    loud, silent = encoder.prepare(wave)
    assert loud.std() > 50 * silent.std()
    assert abs(float(torch.cat([loud, silent]).std()) - 1) < 1e-3


def test_whisper_takes_windows_of_thirty_seconds(load_tiny):
    encoder = load_tiny("whisper", "audio")
    wave = noise(33)
    states = encoder.encode([wave], (3,))[0]
    assert states.shape[1] == 33 * 50
    second = encoder.encode([wave[30 * SECOND :]], (3,))[0]
    torch.testing.assert_close(states[:, 1500:], second)


@pytest.mark.parametrize("window", ["30", "clip"])
def test_the_window_of_a_whisper_is_that_of_its_checkpoint(window, whisper):
    """The fixture was trained on windows of 1 s: a longer clip is divided, and no part of it is lost."""
    from mertool import encoders

    source = encoders.resolve_encoder(str(whisper), "audio")
    encoder = encoders.load_encoder(source, "audio", device=torch.device("cpu"), dtype=torch.float32)
    encoder.set_window(window)
    wave = noise(2.5)
    (states,) = encoder.encode([wave], (1,))
    assert states.shape[1] == 125
    pieces = [encoder.encode([wave[start : start + SECOND]], (1,))[0] for start in range(0, len(wave), SECOND)]
    torch.testing.assert_close(states, torch.cat(pieces, dim=1))


def test_a_long_clip_takes_several_forward_passes(load_tiny, monkeypatch):
    monkeypatch.setattr("mertool.encoders.batch_invariance.MAX_SECONDS_PER_FORWARD", {"cpu": 30})
    encoder = load_tiny("whisper", "audio")
    encoder.set_window("clip")
    batches = []
    forward = encoder._forward
    monkeypatch.setattr(
        encoder, "_forward", lambda windows, layers: batches.append(len(windows)) or forward(windows, layers)
    )
    assert encoder.encode([noise(61)], (1,))[0].shape[1] == 61 * 50
    assert batches == [1, 1, 1]


@pytest.mark.parametrize(("name", "valid"), [("whisper", "30, clip"), ("hubert", "none")])
def test_a_window_that_an_encoder_does_not_have(name, valid, load_tiny):
    with pytest.raises(MertoolError, match=f"has no window 'film': valid: {valid}"):
        load_tiny(name, "audio").set_window("film")


@pytest.mark.parametrize("name", ["hubert", "hubert_group", "data2vec"])
@pytest.mark.parametrize("samples", [0, 1, 50])
def test_less_than_a_frame_is_too_short(name, samples, load_tiny):
    with pytest.raises(ClipError) as error:
        load_tiny(name, "audio").encode([noise(2), np.zeros(samples, np.float32)], (1,))
    assert error.value.reason == "too_short"
    assert str(samples) in error.value.message


@pytest.mark.parametrize("name", ["hubert", "hubert_group", "data2vec"])
def test_silence_has_finite_features(name, load_tiny):
    assert load_tiny(name, "audio").encode([np.zeros(SECOND, np.float32)], (1,))[0].isfinite().all()


def test_a_text_without_tokens_is_no_text(load_tiny):
    with pytest.raises(ClipError) as error:
        load_tiny("bert", "text").encode(["we lost", "   "], (1,))
    assert error.value.reason == "no_text"


@pytest.mark.parametrize(("name", "most"), [("bert", 254), ("roberta", 30), ("llama", 64)])
def test_a_long_text_is_cut_to_the_positions_there_are(name, most, load_tiny):
    states = load_tiny(name, "text").encode(["dog " * 600], (3,))[0]
    assert states.shape[1] == most
    assert states.isfinite().all()


@pytest.mark.parametrize(
    ("name", "modality", "item", "cost"),
    [
        ("hubert", "audio", np.zeros(24_000, np.float32), 1.5),
        ("whisper", "audio", np.zeros(24_000, np.float32), 30),
        ("clip", "video", np.zeros((7, 64, 64, 3), np.uint8), 7),
        ("bert", "text", "so sad", 4),  # and the first and last token that BERT adds
    ],
)
def test_what_an_input_costs(name, modality, item, cost, load_tiny):
    encoder = load_tiny(name, modality)
    assert encoder.cost(encoder.prepare(item)) == cost

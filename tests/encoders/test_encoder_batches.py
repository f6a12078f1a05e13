"""A clip's features do not depend on the clips it is encoded with; long and short clips."""

import numpy as np
import pytest
import torch

from mertool.errors import ClipError

SECOND = 16_000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * SECOND)).astype(np.float32)


@pytest.mark.parametrize("name", ["hubert", "hubert_group", "wav2vec2", "wavlm", "wavlm_group", "data2vec", "whisper"])
def test_speech_in_a_batch_equals_alone(name, load_tiny):
    encoder = load_tiny(name, "audio")
    layers = tuple(range(encoder.num_layers + 1))
    waves = [noise(0.73), noise(1.5, 1), noise(0.3, 2)]
    for wave, together in zip(waves, encoder.encode(waves, layers), strict=True):
        alone = encoder.encode([wave], layers)[0]
        assert together.shape == alone.shape
        assert torch.linalg.norm(together - alone) <= 1e-4 * torch.linalg.norm(alone)


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

"""The blocks that training runs: from the frozen prefix as from the front end, masked and padded or not."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from mertool.adapters.blocks import Body, mean_over_time
from mertool.encoders.hidden_states import capture_hidden_states
from mertool.errors import MertoolError

FAMILIES = ["hubert", "hubert_group", "wav2vec2", "wav2vec2_group", "wavlm", "wavlm_group", "data2vec"]
LAYERS = (2, 3)


@pytest.fixture
def sound():
    random = np.random.default_rng(0)
    return [random.normal(0, 1, size).astype(np.float32) for size in (9000, 6000)]


@torch.no_grad()
def starts(encoder, wave):
    """What training of LAYERS starts from, (T, D) with the prefix and (T, C) in the exact form."""
    samples = encoder.standardise(wave)[None]
    front = encoder.model.feature_extractor(samples)[0].T.clone()
    with capture_hidden_states(encoder.blocks, [min(LAYERS) - 1]) as found:
        encoder.model(samples)
    return found[min(LAYERS) - 1][0], front


def run(body, clips, mask=None):
    lengths = torch.tensor([len(clip) for clip in clips])
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    with torch.no_grad():
        return body(padded, lengths, mask, LAYERS), lengths


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_are_those_of_the_whole_encoder(name, exact, load_tiny, sound):
    encoder = load_tiny(name, "audio")
    plain = encoder.encode([sound[0]], LAYERS)[0]
    start = starts(encoder, sound[0])[exact]
    found, _ = run(Body(encoder, LAYERS, exact), [start])
    for number, layer in enumerate(LAYERS):
        torch.testing.assert_close(found[layer][0], plain[number], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_changes_nothing(name, load_tiny, sound):
    encoder = load_tiny(name, "audio")
    clips = [starts(encoder, wave)[0] for wave in sound]
    body = Body(encoder, LAYERS, exact=False)
    together, lengths = run(body, clips)
    for row, clip in enumerate(clips):
        alone, _ = run(body, [clip])
        for layer in LAYERS:
            torch.testing.assert_close(together[layer][row, : lengths[row]], alone[layer][0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("exact", [False, True])
def test_a_hidden_frame_cannot_be_seen(exact, load_tiny, sound):
    encoder = load_tiny("hubert", "audio")
    start = starts(encoder, sound[0])[exact]
    body = Body(encoder, LAYERS, exact)
    mask = torch.zeros(1, len(start), dtype=torch.bool)
    mask[0, 3:7] = True
    other = start.clone()
    other[3:7] = 5.0
    plain, masked = run(body, [start])[0], run(body, [start], mask)[0]
    assert not torch.allclose(plain[3], masked[3], atol=1e-3)
    torch.testing.assert_close(run(body, [other], mask)[0][3], masked[3])


def test_what_is_not_run_is_not_there(load_tiny):
    encoder = load_tiny("hubert", "audio")
    whole = sum(p.numel() for p in encoder.model.parameters())
    block = sum(p.numel() for p in encoder.blocks[1].parameters())
    body = Body(encoder, LAYERS, exact=False)
    left = sum(p.numel() for p in body.parameters())
    assert 2 * block <= left < 2 * block + 0.1 * whole
    assert not any(p.requires_grad for p in body.parameters())


def test_a_copy_is_independent(load_tiny, sound):
    encoder = load_tiny("wavlm", "audio")
    start = starts(encoder, sound[0])[0]
    body = Body(encoder, LAYERS, exact=False)
    before = run(body, [start])[0][3]
    twin = deepcopy(body)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(run(body, [start])[0][3], before)


def test_whisper_has_no_body(load_tiny):
    with pytest.raises(MertoolError, match="spectrograms"):
        Body(load_tiny("whisper", "audio"), (2,), exact=False)


def test_the_mean_leaves_padding_out():
    hidden = torch.tensor([[[1.0], [3.0], [100.0]], [[1.0], [2.0], [3.0]]])
    torch.testing.assert_close(mean_over_time(hidden, torch.tensor([2, 3])), torch.tensor([[2.0], [2.0]]))

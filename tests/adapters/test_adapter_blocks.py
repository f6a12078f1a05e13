"""The blocks that training runs: from the frozen prefix or the front end, masked and padded or not."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from mertool.adapters.blocks import AdaptableBlocks, mean_over_time
from mertool.encoders.hidden_states import capture_hidden_states
from mertool.errors import MertoolError

FAMILIES = ["hubert", "hubert_group", "wav2vec2", "wav2vec2_group", "wavlm", "wavlm_group", "data2vec"]
LAYERS = (2, 3)


@pytest.fixture
def waves():
    random = np.random.default_rng(0)
    return [random.normal(0, 1, size).astype(np.float32) for size in (9000, 6000)]


@torch.no_grad()
def block_inputs(encoder, wave):
    """Inputs of training for LAYERS: (T, D) from the frozen prefix, and (T, C) from the front end."""
    samples = encoder.normalize_waveform(wave)[None]
    frontend = encoder.model.feature_extractor(samples)[0].T.clone()
    with capture_hidden_states(encoder.blocks, [min(LAYERS) - 1]) as hidden:
        encoder.model(samples)
    return hidden[min(LAYERS) - 1][0], frontend


def run(blocks, clips, mask=None):
    lengths = torch.tensor([len(clip) for clip in clips])
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    with torch.no_grad():
        return blocks(padded, lengths, mask, LAYERS), lengths


@pytest.mark.parametrize("from_frontend", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_adaptable_blocks_have_the_outputs_of_the_whole_encoder(name, from_frontend, load_tiny, waves):
    encoder = load_tiny(name, "audio")
    plain = encoder.encode([waves[0]], LAYERS)[0]
    start = block_inputs(encoder, waves[0])[from_frontend]
    outputs, _ = run(AdaptableBlocks.from_encoder(encoder, LAYERS, from_frontend=from_frontend), [start])
    for number, layer in enumerate(LAYERS):
        torch.testing.assert_close(outputs[layer][0], plain[number], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_adaptable_blocks_ignore_padding(name, load_tiny, waves):
    encoder = load_tiny(name, "audio")
    clips = [block_inputs(encoder, wave)[0] for wave in waves]
    blocks = AdaptableBlocks.from_encoder(encoder, LAYERS, from_frontend=False)
    batched, lengths = run(blocks, clips)
    for row, clip in enumerate(clips):
        single, _ = run(blocks, [clip])
        for layer in LAYERS:
            torch.testing.assert_close(batched[layer][row, : lengths[row]], single[layer][0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("from_frontend", [False, True])
def test_masked_frames_have_no_influence(from_frontend, load_tiny, waves):
    encoder = load_tiny("hubert", "audio")
    start = block_inputs(encoder, waves[0])[from_frontend]
    blocks = AdaptableBlocks.from_encoder(encoder, LAYERS, from_frontend=from_frontend)
    mask = torch.zeros(1, len(start), dtype=torch.bool)
    mask[0, 3:7] = True
    changed = start.clone()
    changed[3:7] = 5.0
    plain, masked = run(blocks, [start])[0], run(blocks, [start], mask)[0]
    assert not torch.allclose(plain[3], masked[3], atol=1e-3)
    torch.testing.assert_close(run(blocks, [changed], mask)[0][3], masked[3])


def test_layers_that_are_not_run_are_removed(load_tiny):
    encoder = load_tiny("hubert", "audio")
    n_encoder = sum(p.numel() for p in encoder.model.parameters())
    n_block = sum(p.numel() for p in encoder.blocks[1].parameters())
    blocks = AdaptableBlocks.from_encoder(encoder, LAYERS, from_frontend=False)
    n_blocks = sum(p.numel() for p in blocks.parameters())
    assert 2 * n_block <= n_blocks < 2 * n_block + 0.1 * n_encoder
    assert not any(p.requires_grad for p in blocks.parameters())


def test_a_copy_of_the_blocks_is_independent(load_tiny, waves):
    encoder = load_tiny("wavlm", "audio")
    start = block_inputs(encoder, waves[0])[0]
    blocks = AdaptableBlocks.from_encoder(encoder, LAYERS, from_frontend=False)
    before = run(blocks, [start])[0][3]
    clone = deepcopy(blocks)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(run(blocks, [start])[0][3], before)


def test_whisper_cannot_be_adapted(load_tiny):
    with pytest.raises(MertoolError, match="spectrograms"):
        AdaptableBlocks.from_encoder(load_tiny("whisper", "audio"), (2,), from_frontend=False)


def test_mean_over_time_ignores_padding():
    hidden = torch.tensor([[[1.0], [3.0], [100.0]], [[1.0], [2.0], [3.0]]])
    torch.testing.assert_close(mean_over_time(hidden, torch.tensor([2, 3])), torch.tensor([[2.0], [2.0]]))

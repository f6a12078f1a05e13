"""The blocks that training runs: from the frozen prefix or the front end, masked and padded or not."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from mertool.adapters.blocks import AdaptableBlocks, mean_over_time
from mertool.errors import MertoolError

FAMILIES = ["hubert", "hubert_group", "wav2vec2", "wav2vec2_group", "wavlm", "wavlm_group", "data2vec", "whisper"]
LAYERS = (2, 3)


@pytest.fixture
def waves():
    random = np.random.default_rng(0)
    return [random.normal(0, 1, size).astype(np.float32) for size in (9000, 6000)]


@pytest.fixture
def load(load_tiny):
    """A function (name) that loads an encoder on the window on which it is adapted."""

    def load(name):
        encoder = load_tiny(name, "audio")
        if encoder.windows:
            encoder.set_window("clip")
        return encoder

    return load


@torch.no_grad()
def block_inputs(encoder, wave):
    """Inputs of training for LAYERS: (T, D) from the frozen prefix, and (T, C) from the front end."""
    frontend = encoder.adaptable().run_front_end(wave)
    (prefix,) = encoder.encode([wave], [min(LAYERS) - 1])
    return prefix[0], frontend.contiguous()


def run(blocks, clips, mask=None):
    lengths = torch.tensor([len(clip) for clip in clips])
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    with torch.no_grad():
        return blocks(padded, lengths, mask, LAYERS), lengths


@pytest.mark.parametrize("from_frontend", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_adaptable_blocks_have_the_outputs_of_the_whole_encoder(name, from_frontend, load, waves):
    encoder = load(name)
    plain = encoder.encode([waves[0]], LAYERS)[0]
    start = block_inputs(encoder, waves[0])[from_frontend]
    outputs, _ = run(AdaptableBlocks.from_encoder(encoder, LAYERS, from_frontend=from_frontend), [start])
    for number, layer in enumerate(LAYERS):
        torch.testing.assert_close(outputs[layer][0], plain[number], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_adaptable_blocks_ignore_padding(name, load, waves):
    encoder = load(name)
    clips = [block_inputs(encoder, wave)[0] for wave in waves]
    blocks = AdaptableBlocks.from_encoder(encoder, LAYERS, from_frontend=False)
    batched, lengths = run(blocks, clips)
    for row, clip in enumerate(clips):
        single, _ = run(blocks, [clip])
        for layer in LAYERS:
            torch.testing.assert_close(batched[layer][row, : lengths[row]], single[layer][0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("from_frontend", [False, True])
@pytest.mark.parametrize("name", ["hubert", "whisper"])
def test_masked_frames_have_no_influence(name, from_frontend, load, waves):
    encoder = load(name)
    start = block_inputs(encoder, waves[0])[from_frontend]
    blocks = AdaptableBlocks.from_encoder(encoder, LAYERS, from_frontend=from_frontend)
    mask = torch.zeros(1, len(start), dtype=torch.bool)
    mask[0, 3:7] = True
    changed = start.clone()
    changed[3:7] = 5.0
    plain, masked = run(blocks, [start])[0], run(blocks, [start], mask)[0]
    assert not torch.allclose(plain[3], masked[3], atol=1e-3)
    torch.testing.assert_close(run(blocks, [changed], mask)[0][3], masked[3])


@pytest.mark.parametrize("name", ["hubert", "whisper"])
def test_layers_that_are_not_run_are_removed(name, load):
    encoder = load(name)
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


def test_padding_is_ignored_from_the_front_end_of_whisper(load, waves):
    encoder = load("whisper")
    clips = [block_inputs(encoder, wave)[1] for wave in waves]
    blocks = AdaptableBlocks.from_encoder(encoder, LAYERS, from_frontend=True)
    assert blocks.supports_padding
    batched, lengths = run(blocks, clips)
    for row, clip in enumerate(clips):
        single, _ = run(blocks, [clip])
        torch.testing.assert_close(batched[3][row, : lengths[row]], single[3][0], atol=1e-5, rtol=1e-4)


def test_whisper_is_adapted_on_windows_that_follow_the_clip(load_tiny, waves):
    encoder = load_tiny("whisper", "audio")
    assert encoder.window == "30"
    assert len(encoder.adaptable().run_front_end(waves[0])) == encoder.num_frames(len(waves[0]))
    assert encoder.window == "30"


def test_an_encoder_of_another_modality_cannot_be_adapted(load_tiny):
    with pytest.raises(MertoolError, match="finetune adapts speech encoders"):
        AdaptableBlocks.from_encoder(load_tiny("clip", "video"), (2,), from_frontend=False)


def test_mean_over_time_ignores_padding():
    hidden = torch.tensor([[[1.0], [3.0], [100.0]], [[1.0], [2.0], [3.0]]])
    torch.testing.assert_close(mean_over_time(hidden, torch.tensor([2, 3])), torch.tensor([[2.0], [2.0]]))

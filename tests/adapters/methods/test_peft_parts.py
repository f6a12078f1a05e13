"""The computation of single PEFT methods."""

import pytest
import torch
from adapted import WAVE, adapt, close, fresh, output, shake
from torch import nn

from mertool.adapters.methods.layer_adapters import LayerAdapter
from mertool.adapters.methods.prompt import _extend_mask


@pytest.fixture
def hidden():
    torch.manual_seed(1)
    return torch.randn(1, 5, 32)


def delta(bottleneck, hidden):
    """Return down-projection, ReLU and up-projection by the weights of `bottleneck`."""
    inner = torch.relu(hidden @ bottleneck.down.weight.T + bottleneck.down.bias)
    return inner @ bottleneck.up.weight.T + bottleneck.up.bias


@torch.no_grad()
def test_a_bottleneck_is_down_relu_up_and_residual(hidden, load_tiny):
    model, encoder = adapt(fresh(load_tiny, "wav2vec2"), "bottleneck", (2,))
    shake(model)
    layer = encoder.blocks[1].feed_forward
    inner = layer.base_layer(hidden)
    torch.testing.assert_close(layer(hidden), inner + delta(layer.replacements["final"], inner))
    assert layer.replacements["final"].down.weight.shape == (4, encoder.channels)


@torch.no_grad()
def test_a_parallel_bottleneck_reads_what_the_feed_forward_reads(hidden, load_tiny):
    model, encoder = adapt(fresh(load_tiny, "wav2vec2"), "bottleneck-parallel", (2,))
    shake(model)
    layer = encoder.blocks[1].feed_forward
    torch.testing.assert_close(layer(hidden), layer.base_layer(hidden) + delta(layer.replacements["final"], hidden))


@torch.no_grad()
@pytest.mark.parametrize("method", ["bottleneck", "bottleneck-parallel"])
def test_bottlenecks_of_a_block_without_a_feed_forward_module(method, hidden, load_tiny):
    """Whisper computes its feed-forward network in the block itself."""
    encoder = fresh(load_tiny, "whisper_short")
    plain = encoder.blocks[1]
    model, encoder = adapt(encoder, method, (2,))
    shake(model)
    (adapted,) = {module for module in model.modules() if hasattr(module, "replacements")}
    after_attention = hidden + plain.self_attn(plain.self_attn_layer_norm(hidden))[0]
    inputs = plain.final_layer_norm(after_attention)
    base_fc2 = getattr(plain.fc2, "base_layer", plain.fc2)
    network = base_fc2(plain.activation_fn(plain.fc1(inputs)))
    expected = delta(adapted.replacements["final"], network if method == "bottleneck" else inputs)
    torch.testing.assert_close(encoder.blocks[1](hidden, attention_mask=None), after_attention + network + expected)


# ---------------------------------------------------------------- layer adapters


@torch.no_grad()
def test_layer_adapters_add_up_at_the_last_chosen_block(load_tiny):
    encoder = fresh(load_tiny, "wavlm_group")
    (plain,) = encoder.encode([WAVE[0].numpy()], (1, 2, 3))
    model, encoder = adapt(encoder, "layer-adapters", (1, 3))
    shake(model)
    (now,) = encoder.encode([WAVE[0].numpy()], (1, 2, 3))
    adapters = [encoder.blocks[number].replacements["final"] for number in (0, 2)]
    norm = nn.LayerNorm(encoder.channels, elementwise_affine=False)
    expected = plain[2] + sum(delta(adapter, norm(plain[n])) for adapter, n in zip(adapters, (0, 2), strict=True))
    torch.testing.assert_close(now[:2], plain[:2], rtol=0, atol=0)
    torch.testing.assert_close(now[2], expected)


def test_a_pass_that_broke_off_leaves_nothing_behind(load_tiny):
    model, encoder = adapt(fresh(load_tiny, "wavlm"), "layer-adapters", (1, 2, 3))
    shake(model)
    expected = output(model)

    def fail(*_):
        raise RuntimeError("no memory")

    for context in (torch.inference_mode(), torch.enable_grad()):
        handle = encoder.blocks[2].register_forward_hook(fail)
        with context, pytest.raises(RuntimeError, match="no memory"):
            model(torch.cat([WAVE, WAVE]))
        handle.remove()
        assert torch.equal(output(model), expected)
    model(WAVE).last_hidden_state.sum().backward()
    sums = {id(m.running_sum): m.running_sum for m in model.modules() if isinstance(m, LayerAdapter)}
    assert [running_sum.value for running_sum in sums.values()] == [None]  # one for all blocks, empty after a pass


# ---------------------------------------------------------------- prompt vectors


@pytest.mark.parametrize("additive", [False, True])
def test_the_masks_of_attention_grow(additive):
    """A position that may be attended to is True, or 0 where the mask is added to the scores."""
    real = torch.tensor([[True, True, False]])
    assert torch.equal(_extend_mask(real, 2), torch.tensor([[True, True, True, True, False]]))
    assert torch.equal(_extend_mask(real.long(), 2), torch.tensor([[1, 1, 1, 1, 0]]))
    scores = torch.zeros(1, 1, 3, 3).masked_fill(~real[:, None, None], -torch.inf) if additive else None
    mask = real[:, None, None].expand(1, 1, 3, 3) if scores is None else scores
    longer = _extend_mask(mask, 2)
    assert longer.shape == (1, 1, 5, 5)
    attended = longer == 0 if additive else longer
    assert attended[0, 0, 2:].tolist() == [[True, True, True, True, False]] * 3
    assert _extend_mask(mask[:, :, :1], 2).shape == (1, 1, 1, 5)
    assert _extend_mask(None, 2) is None


def test_an_unknown_kind_of_mask_is_an_error():
    with pytest.raises(TypeError, match="attention masks of the kind dict"):
        _extend_mask({}, 2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_prompts_are_seen_and_cut_off(attention, load_tiny):
    """An explicit run of the block on the longer sequence gives the same, with each kind of attention."""
    model, encoder = adapt(fresh(load_tiny, "hubert"), "prompt", (2,))
    shake(model)
    model.get_base_model().set_attn_implementation(attention)
    waves = [WAVE[0].numpy(), WAVE[1, :1700].numpy()]
    inputs = encoder.encode(waves, (1,))
    block = encoder.blocks[1]
    vectors = block.replacements["final"].vectors.detach()
    for before, output_of_block in zip(inputs, encoder.encode(waves, (2,)), strict=True):
        with torch.no_grad():
            expected = block.base_layer(torch.cat([vectors, before[0]])[None])
        assert close(output_of_block[0], expected[0, len(vectors) :])


@torch.no_grad()
@pytest.mark.parametrize("first", [True, False])
def test_the_position_bias_of_wavlm_is_handed_on_as_it_was(first, hidden, load_tiny):
    _, encoder = adapt(fresh(load_tiny, "wavlm"), "prompt", (1,))
    block, own = encoder.blocks[0], encoder.blocks[0].base_layer
    bias = own(hidden, position_bias=None)[1]
    _, passed_on = block(hidden, position_bias=None if first else bias)
    assert torch.equal(passed_on, bias)


# ---------------------------------------------------------------- biases and factors


@torch.no_grad()
@pytest.mark.parametrize("name", ["hubert_group", "wavlm"])
def test_bitfit_is_the_block_with_other_biases(name, load_tiny):
    model, encoder = adapt(fresh(load_tiny, name), "bitfit", (2,))
    shake(model)
    plain = fresh(load_tiny, name)
    own = dict(plain.blocks[1].named_parameters())
    deltas = dict(encoder.blocks[1].replacements["final"].named_parameters())
    for key, delta_of_bias in deltas.items():
        own[key.replace("-", ".")] += delta_of_bias
    torch.testing.assert_close(output(model), output(plain.model))
    left_out = {key for key in own if key.endswith("bias")} - {key.replace("-", ".") for key in deltas}
    assert left_out == {"attention.k_proj.bias"}


@pytest.mark.parametrize(("name", "count"), [("hubert", 3), ("wavlm", 1)])
def test_ia3_scales_what_the_feed_forward_reads_and_attention_where_it_can(name, count, load_tiny):
    _, encoder = adapt(fresh(load_tiny, name), "ia3", (2,))
    layers = [module for module in encoder.blocks[1].modules() if hasattr(module, "is_feedforward")]
    assert len(layers) == count
    inner = [layer for layer in layers if layer.is_feedforward]
    assert inner == [encoder.blocks[1].feed_forward.output_dense]


def test_only_one_adapter_is_active_at_a_time(load_tiny):
    model, _ = adapt(fresh(load_tiny, "hubert"), "prompt")
    with pytest.raises(ValueError, match="one adapter can be active at a time, not final, fold0"):
        model.base_model.set_adapter(["final", "fold0"])

"""Layers that are faster on a CPU compute the same but for rounding; what cannot be replaced is left alone."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoFeatureExtractor, AutoModel

from mertool import encoders
from mertool.devices import has_onednn_linear
from mertool.encoders import cpu
from mertool.encoders.cpu import (
    ChannelsLastGroupNorm,
    PackedConv1d,
    PackedGroupedConv1d,
    PackedLinear,
    optimize_for_cpu,
)
from mertool.encoders.masked_group_norm import MaskedGroupNorm

pytestmark = pytest.mark.skipif(not has_onednn_linear(), reason="this build of torch has no oneDNN")
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)]


def near(values, expected, tolerance):
    """Return whether two tensors of one shape differ by rounding, by their norms."""
    assert values.shape == expected.shape
    values, expected = values.float(), expected.float()
    return float((values - expected).norm()) <= tolerance * float(expected.norm())


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("kernel", "padding", "bias"), [(8, 4, True), (5, 2, False), (3, 0, True)])
def test_a_convolution_in_groups(kernel, padding, bias, batch, dtype, tolerance):
    torch.manual_seed(0)
    conv = nn.Conv1d(32, 48, kernel, padding=padding, groups=4, bias=bias).to(dtype)
    inputs = torch.randn(batch, 20, 32).to(dtype).transpose(1, 2)
    assert near(PackedGroupedConv1d(conv)(inputs), conv.float()(inputs.float()), tolerance)


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("samples", [[100], [100, 100], [100, 60]])
def test_the_norm_of_a_clips_own_frames(samples, dtype, tolerance):
    torch.manual_seed(0)
    norm = nn.GroupNorm(16, 16)
    nn.init.normal_(norm.weight)
    own = MaskedGroupNorm(norm.to(dtype), kernel=1, stride=1)
    own.set_lengths(samples, max(samples))
    inputs = torch.randn(len(samples), max(samples), 16).to(dtype).transpose(1, 2)
    assert near(ChannelsLastGroupNorm(own)(inputs), own(inputs), tolerance)


@pytest.mark.parametrize("name", ["hubert", "hubert_group"])
def test_a_speech_encoder_gets_them(name, load_tiny):
    model = load_tiny(name, "audio").model
    optimize_for_cpu(model)
    first = model.feature_extractor.conv_layers[0]
    assert isinstance(first.conv, PackedConv1d)
    assert isinstance(first.layer_norm, ChannelsLastGroupNorm) == (name == "hubert_group")
    assert any(isinstance(module, PackedGroupedConv1d) for module in model.modules())


def test_a_convolution_that_is_no_product_stays():
    model = nn.Sequential(
        nn.Linear(8, 8), nn.Conv1d(16, 16, 3, padding=1, groups=16), nn.Conv1d(16, 16, 3, padding="same", groups=2)
    )
    convs = list(model)[1:]
    optimize_for_cpu(model)
    assert list(model)[1:] == convs


# ---------------------------------------------------------------- packed linear layers and convolutions


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (1, 24), (2, 7, 24), (2, 3, 4, 24), (0, 24)])
def test_a_linear_layer(shape, bias, dtype, tolerance):
    torch.manual_seed(0)
    layer = nn.Linear(24, 10, bias=bias).to(dtype)
    inputs = torch.randn(shape).to(dtype)
    values = PackedLinear(layer.weight, layer.bias)(inputs)
    assert values.dtype == dtype
    assert near(values, layer.float()(inputs.float()), tolerance)


@torch.inference_mode()
def test_inputs_that_are_not_contiguous():
    torch.manual_seed(0)
    layer = nn.Linear(24, 10)
    inputs = torch.randn(2, 24, 7).transpose(1, 2)
    assert near(PackedLinear(layer.weight, layer.bias)(inputs), layer(inputs), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_of_a_linear_layer_can_still_be_read(dtype):
    layer = nn.Linear(24, 10).to(dtype)
    weight = PackedLinear(layer.weight, layer.bias).weight
    assert (weight.shape, weight.dtype) == ((10, 24), dtype)
    torch.testing.assert_close(weight, layer.weight.detach(), rtol=0, atol=0)


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (2, 2), (3, 2), (4, 4), (8, 5), (3, 7)])
@pytest.mark.parametrize(("batch", "length"), [(1, 40), (3, 41), (1, 8)])
def test_a_convolution(batch, length, kernel, stride, bias, dtype, tolerance):
    torch.manual_seed(0)
    layer = nn.Conv1d(6, 10, kernel, stride, bias=bias).to(dtype)
    inputs = torch.randn(batch, 6, length).to(dtype)
    values = PackedConv1d(layer)(inputs)
    assert values.dtype == dtype
    assert near(values, layer.float()(inputs.float()), tolerance)


@torch.inference_mode()
def test_convolutions_one_after_the_other():
    """The outcome of the first lies in memory in another order than its shape says."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv1d(4, 6, 3, 2), nn.GELU(), nn.Conv1d(6, 5, 2, 2))
    inputs = torch.randn(2, 4, 50)
    expected = layers(inputs)
    optimize_for_cpu(layers)
    assert [type(layer) for layer in layers] == [PackedConv1d, nn.GELU, PackedConv1d]
    assert near(layers(inputs), expected, 1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"padding": 1}, {"padding": "same"}, {"padding_mode": "circular", "padding": 2}, {"groups": 2}, {"dilation": 2}],
    ids=str,
)
def test_special_convolutions_are_left_alone(settings):
    model = nn.Sequential(nn.Conv1d(4, 4, 3, **settings))
    own = model[0]
    optimize_for_cpu(model)
    assert model[0] is own


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(1, 4, 10, 5),
        nn.Conv2d(3, 4, 3),
        nn.ConvTranspose1d(4, 4, 3),
        nn.Embedding(5, 4),
        nn.LayerNorm(4),
        nn.Linear(4, 4).half(),
        nn.Linear(4, 4).double(),
        type("Scaled", (nn.Linear,), {})(4, 4),  # whatever it may do in its own forward
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_not_known_is_left_alone(layer):
    model = nn.Sequential(layer)
    optimize_for_cpu(model)
    assert model[0] is layer


def names_of(model: nn.Module, kind: type) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is kind]


def test_a_speech_encoder_is_packed_completely(load_tiny):
    model = load_tiny("wav2vec2", "audio").model
    optimize_for_cpu(model)
    assert not names_of(model, nn.Linear)
    assert not names_of(model, nn.Conv1d)
    assert len(names_of(model, PackedConv1d)) == 4
    assert len(names_of(model, PackedGroupedConv1d)) == 1


def test_the_attention_of_wavlm_is_left_alone(load_tiny):
    model = load_tiny("wavlm", "audio").model
    optimize_for_cpu(model)
    attentions = [module for module in model.modules() if type(module).__name__ == "WavLMAttention"]
    assert len(attentions) == 4
    assert not any(names_of(attention, PackedLinear) for attention in attentions)
    assert names_of(model, PackedLinear)  # the others are packed


KINDS = [("wavlm", "audio"), ("hubert_group", "audio"), ("whisper", "audio"), ("bert", "text"), ("clip", "video")]


@pytest.mark.parametrize(("name", "modality"), KINDS)
def test_a_packed_encoder_gives_the_same(name, modality, load_tiny):
    draw = np.random.default_rng(0)
    content = {
        "audio": draw.normal(0, 0.1, 16_000).astype(np.float32),
        "video": draw.integers(0, 256, (2, 64, 64, 3), np.uint8),
        "text": "we lost the dog again",
    }[modality]
    encoder = load_tiny(name, modality)
    layers = tuple(range(encoder.num_layers + 1))
    (expected,) = encoder.encode([content], layers)
    optimize_for_cpu(encoder.model)
    assert names_of(encoder.model, PackedLinear)
    assert near(encoder.encode([content], layers)[0], expected, 1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("name", ["hubert", "hubert_group"])
def test_hubert_on_a_cpu_gives_the_values_of_transformers(name, dtype, tolerance, tiny_encoders):
    """Its own float32 layers and fused attention differ from packed layers and eager attention by rounding."""
    folder = tiny_encoders[name]
    wave = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    inputs = AutoFeatureExtractor.from_pretrained(folder)(wave, sampling_rate=16_000, return_tensors="pt").input_values
    reference = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    encoder = encoders.load_encoder(
        encoders.resolve_encoder(str(folder), "audio"), "audio", device=torch.device("cpu"), dtype=dtype
    )
    assert encoder.model.config._attn_implementation == "eager"
    optimize_for_cpu(encoder.model)
    with torch.inference_mode():
        states = reference(inputs, output_hidden_states=True).hidden_states
    # transformers' last entry is after a LayerNorm in the large form, which a block's output is not.
    layers = tuple(range(encoder.num_layers))
    (values,) = encoder.encode([wave], layers)
    assert near(values, torch.cat(states[:-1]), tolerance)


def test_where_torch_has_no_onednn_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(cpu, "has_onednn_linear", lambda: False)
    model = nn.Sequential(nn.Linear(4, 4))
    optimize_for_cpu(model)
    assert type(model[0]) is nn.Linear

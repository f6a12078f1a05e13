"""Packed layers compute what torch's own do, and what cannot be packed stays as it is."""

import numpy as np
import pytest
import torch
from torch import nn

from mertool.encoders import packed
from mertool.encoders.packed import PackedConv, PackedLinear, pack

pytestmark = pytest.mark.skipif(not packed._can_pack(), reason="this build of torch has no oneDNN")


def near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Whether two tensors of one shape are equal but for rounding, by their norms."""
    assert found.shape == expected.shape
    found, expected = found.float(), expected.float()
    return float((found - expected).norm()) <= tolerance * float(expected.norm())


DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)]


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (1, 24), (2, 7, 24), (2, 3, 4, 24), (0, 24)])
def test_a_linear_layer(shape, bias, dtype, tolerance):
    torch.manual_seed(0)
    layer = nn.Linear(24, 10, bias=bias).to(dtype)
    inputs = torch.randn(shape).to(dtype)
    found = PackedLinear(layer.weight, layer.bias)(inputs)
    assert found.dtype == dtype
    assert near(found, layer.float()(inputs.float()), tolerance)


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
    found = PackedConv(layer)(inputs)
    assert found.dtype == dtype
    assert near(found, layer.float()(inputs.float()), tolerance)


@torch.inference_mode()
def test_convolutions_one_after_the_other():
    """The outcome of the first lies in memory in another order than its shape says."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv1d(4, 6, 3, 2), nn.GELU(), nn.Conv1d(6, 5, 2, 2))
    inputs = torch.randn(2, 4, 50)
    expected = layers(inputs)
    pack(layers)
    assert [type(layer) for layer in layers] == [PackedConv, nn.GELU, PackedConv]
    assert near(layers(inputs), expected, 1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"padding": 1}, {"padding": "same"}, {"padding_mode": "circular", "padding": 2}, {"groups": 2}, {"dilation": 2}],
    ids=str,
)
def test_special_convolutions_are_left_alone(settings):
    model = nn.Sequential(nn.Conv1d(4, 4, 3, **settings))
    own = model[0]
    pack(model)
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
    pack(model)
    assert model[0] is layer


def names_of(model: nn.Module, kind: type) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is kind]


def test_an_encoder_is_packed_but_for_its_special_layers(load_tiny):
    model = load_tiny("wav2vec2", "audio").model
    pack(model)
    assert not names_of(model, nn.Linear)
    kept = [module for module in model.modules() if type(module) is nn.Conv1d]
    # The first takes a waveform of one channel, the other is the padded and grouped one of the positions.
    assert [module.in_channels for module in kept if module.groups == 1] == [1]
    assert len(names_of(model, PackedConv)) == 3


def test_the_attention_of_wavlm_is_left_alone(load_tiny):
    model = load_tiny("wavlm", "audio").model
    pack(model)
    attentions = [module for module in model.modules() if type(module).__name__ == "WavLMAttention"]
    assert len(attentions) == 4
    assert not any(names_of(attention, PackedLinear) for attention in attentions)
    assert names_of(model, PackedLinear)  # the others are packed


ENCODERS = [("wavlm", "audio"), ("hubert_group", "audio"), ("whisper", "audio"), ("bert", "text"), ("clip", "video")]


@pytest.mark.parametrize(("name", "modality"), ENCODERS)
def test_a_packed_encoder_gives_the_same(name, modality, load_tiny):
    draw = np.random.default_rng(0)
    content = {
        "audio": draw.normal(0, 0.1, 16_000).astype(np.float32),
        "video": draw.integers(0, 256, (2, 64, 64, 3), np.uint8),
        "text": "we lost the dog again",
    }[modality]
    encoder = load_tiny(name, modality)
    keep = tuple(range(encoder.layers + 1))
    (expected,) = encoder.encode([content], keep)
    pack(encoder.model)
    assert names_of(encoder.model, PackedLinear)
    assert near(encoder.encode([content], keep)[0], expected, 1e-4)


def test_where_torch_cannot_pack_nothing_is_changed(monkeypatch):
    def refuse(*_):
        raise RuntimeError("mkldnn_reorder_linear_weight: this build has no mkldnn")

    monkeypatch.setattr(packed, "PackedLinear", refuse)
    model = nn.Sequential(nn.Linear(4, 4))
    pack(model)
    assert type(model[0]) is nn.Linear

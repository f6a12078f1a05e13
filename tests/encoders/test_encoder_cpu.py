"""What is computed in a faster way is the same but for rounding, and what cannot be is left alone."""

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mertool import encoders
from mertool.encoders import cpu as kernels
from mertool.encoders import packed
from mertool.encoders.cpu import ChannelsLastGroupNorm, PackedGroupedConv1d, attend, optimize_for_cpu
from mertool.encoders.packed import PackedConv, pack
from mertool.encoders.speech import MaskedGroupNorm

pytestmark = pytest.mark.skipif(not packed._can_pack(), reason="this build of torch has no oneDNN")
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)]


def near(found, expected, tolerance):
    """Whether two tensors of one shape are equal but for rounding, by their norms."""
    assert found.shape == expected.shape
    found, expected = found.float(), expected.float()
    return float((found - expected).norm()) <= tolerance * float(expected.norm())


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
    own.count_frames(samples, max(samples))
    inputs = torch.randn(len(samples), max(samples), 16).to(dtype).transpose(1, 2)
    assert near(ChannelsLastGroupNorm(own)(inputs), own(inputs), tolerance)


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("mask", ["none", "booleans", "added"])
def test_attention(mask, dtype, tolerance):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 9, 4, 16).to(dtype).transpose(1, 2) for _ in range(3))
    wanted = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    wanted[1, ..., 5:] = False
    added = torch.zeros(wanted.shape, dtype=dtype).masked_fill(~wanted, torch.finfo(dtype).min)
    mask = {"none": None, "booleans": wanted, "added": added}[mask]
    expected = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert near(attend(query, key, value, mask, 0.25), expected, tolerance)


@pytest.fixture
def calls(monkeypatch):
    """Sizes of the queries that attended by products, on a CPU without a unit for matrices."""
    found = []

    def noted(query, *rest):
        found.append(tuple(query.shape))
        return attend(query, *rest)

    monkeypatch.setattr(kernels, "attend", noted)
    monkeypatch.setattr(kernels, "_has_matrix_unit", lambda: False)
    kernels._replace_sdpa()
    return found


class Attention(nn.Module):
    is_causal = False


def attention(dtype=torch.bfloat16, **options):
    query, key, value = (torch.zeros(1, 2, 3, 4, dtype=dtype) for _ in range(3))
    return ALL_ATTENTION_FUNCTIONS["sdpa"](Attention(), query, key, value, None, **options)[0]


def test_attention_by_products_is_for_bfloat16_that_is_not_trained(calls):
    with torch.inference_mode():
        assert attention().shape == (1, 3, 2, 4)
        assert calls == [(1, 2, 3, 4)]
        attention(torch.float32)
        attention(is_causal=True)
    attention()
    assert len(calls) == 1


def test_attention_is_replaced_once(calls):
    replaced = ALL_ATTENTION_FUNCTIONS["sdpa"]
    kernels._replace_sdpa()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is replaced


@pytest.mark.parametrize("name", ["hubert", "hubert_group"])
def test_a_speech_encoder_gets_them(name, tiny_encoders):
    source = encoders.find(str(tiny_encoders[name]), "audio")
    model = encoders.load("audio", source, torch.device("cpu"), torch.float32).model
    optimize_for_cpu(model)
    assert not any(isinstance(module, PackedGroupedConv1d) for module in model.modules()), "it is not packed"
    pack(model)
    optimize_for_cpu(model)
    first = model.feature_extractor.conv_layers[0]
    assert isinstance(first.conv, PackedConv)
    assert isinstance(first.layer_norm, ChannelsLastGroupNorm) == (name == "hubert_group")
    assert any(isinstance(module, PackedGroupedConv1d) for module in model.modules())


def test_a_convolution_that_is_no_product_stays():
    model = nn.Sequential(
        nn.Linear(8, 8), nn.Conv1d(16, 16, 3, padding=1, groups=16), nn.Conv1d(16, 16, 3, padding="same", groups=2)
    )
    convs = list(model)[1:]
    pack(model)
    optimize_for_cpu(model)
    assert list(model)[1:] == convs

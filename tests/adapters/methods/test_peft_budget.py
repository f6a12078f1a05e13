"""Sizes of PEFT methods: counts of trained parameters, the size for a budget, and how a budget is written."""

import pytest
import torch
from adapted import adapt, fresh
from torch import nn

from mertool import registry
from mertool.adapters import methods as peft_methods
from mertool.errors import MertoolError
from mertool.options.finetune import parse_budget

METHODS = registry.choices("adapters.methods")
SIZED = [name for name in METHODS if registry.load("adapters.methods", "PEFT method", name).SIZE]
LAYERS = range(16, 22)


@pytest.fixture(scope="module")
def hubert_large():
    """A model of HuBERT-large's shape, without values."""
    from transformers import HubertConfig, HubertModel

    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    form = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    with torch.device("meta"):
        return HubertModel(HubertConfig(**large, **form))


@pytest.mark.parametrize(
    ("method", "size", "millions"),
    [
        ("bottleneck", 64, 0.79),
        ("bottleneck", 128, 1.58),
        ("bottleneck", 256, 3.15),
        ("bottleneck-parallel", 128, 1.58),
        ("layer-adapters", 128, 1.58),
        ("lora", 16, 1.38),
        ("prompt", 16, 0.098),
        ("ia3", None, 0.037),
        ("bitfit", None, 0.061),
        ("full", None, 75.6),
    ],
)
def test_counts_on_six_layers_of_hubert_large(method, size, millions, hubert_large):
    count = peft_methods._count_for_size(hubert_large, hubert_large.encoder.layers, LAYERS, method=method, size=size)
    digits = len(str(millions).split(".")[1])
    assert round(count / 1e6, digits) == millions


def count_trainable(load_tiny, method, size):
    return peft_methods.count_trainable(adapt(fresh(load_tiny, "hubert"), method, size=size)[0])


@pytest.mark.parametrize("method", SIZED)
def test_the_number_of_parameters_is_affine_in_the_size(method, load_tiny):
    counts = [count_trainable(load_tiny, method, size) for size in (1, 2, 5, 40)]
    step = counts[1] - counts[0]
    assert step > 0
    assert counts[2:] == [counts[0] + 4 * step, counts[0] + 39 * step]


@pytest.mark.parametrize("method", SIZED)
def test_the_size_for_a_budget_is_the_largest_within_it(method, load_tiny):
    encoder = fresh(load_tiny, "hubert")
    before = {name: id(p) for name, p in encoder.model.named_parameters()}
    least = count_trainable(load_tiny, method, 1)
    for budget in (least, least + 1, 10_000, count_trainable(load_tiny, method, 7)):
        size = peft_methods.size_for_budget(encoder.model, encoder.blocks, (2, 3), method=method, budget=budget)
        assert count_trainable(load_tiny, method, size) <= budget < count_trainable(load_tiny, method, size + 1)
    assert {name: id(p) for name, p in encoder.model.named_parameters()} == before  # measured on a copy


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_too_small_for_a_method(method, load_tiny):
    encoder = fresh(load_tiny, "hubert")
    with pytest.raises(MertoolError, match=rf"{method} on these 2 layers trains .*, more than the budget of 10:"):
        peft_methods.size_for_budget(encoder.model, encoder.blocks, (2, 3), method=method, budget=10)


@pytest.mark.parametrize("method", sorted({*METHODS} - {*SIZED}))
def test_a_method_without_a_size_has_to_be_within_the_budget(method, load_tiny):
    encoder, count = fresh(load_tiny, "hubert"), count_trainable(load_tiny, method, None)
    assert peft_methods.size_for_budget(encoder.model, encoder.blocks, (2, 3), method=method, budget=count) is None
    with pytest.raises(MertoolError, match=f"trains {count:,} parameters, more than the budget of {count - 1:,}"):
        peft_methods.size_for_budget(encoder.model, encoder.blocks, (2, 3), method=method, budget=count - 1)


def test_only_trainable_parameters_count():
    model = nn.Linear(3, 2)
    model.bias.requires_grad = False
    assert peft_methods.count_trainable(model) == 6


@pytest.mark.parametrize(
    ("text", "count"),
    [("1.6M", 1_600_000), ("800k", 800_000), ("0.79m", 790_000), ("1600000", 1_600_000), (" 2 M ", 2_000_000)],
)
def test_a_budget_is_parsed(text, count):
    assert parse_budget(text) == count


@pytest.mark.parametrize("text", ["", "M", "0", "-5k", "1.5", "1,6M", "many", "1.0001k", "nan", "1e6"])
def test_an_invalid_budget(text):
    with pytest.raises(MertoolError, match=f"budget '{text}': give a number of parameters such as 800k, 1.6M"):
        parse_budget(text)

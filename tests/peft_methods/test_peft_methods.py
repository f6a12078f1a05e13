"""Every PEFT method of the folder: where it trains, what it changes, how it is saved."""

import copy
import re

import numpy as np
import pytest
import torch

from mertool import peft_methods, registry
from mertool.errors import MertoolError

METHODS = registry.names("peft_methods")
ENCODERS = ["hubert", "hubert_group", "wav2vec2", "wav2vec2_group", "wavlm", "wavlm_group"]
each_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def wave():
    return torch.from_numpy(np.random.default_rng(0).normal(0, 1, (2, 6000)).astype(np.float32))


def adapted(load_tiny, name, method, layers=(2, 3), size=4):
    torch.manual_seed(0)
    encoder = load_tiny(name, "audio")
    return peft_methods.add_adapter(encoder.model, encoder.blocks, layers, method, size), encoder


def block_numbers(names):
    """Blocks, counted from 1, named in parameter names."""
    found = [re.search(r"encoder\.layers\.(\d+)\.", name) for name in names]
    assert all(found), names
    return {int(match.group(1)) + 1 for match in found}


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def shake(model):
    """Give every trainable parameter other values than its first ones."""
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.3 * torch.randn_like(parameter))


def output(model, wave):
    with torch.no_grad():
        return model.eval()(wave).last_hidden_state


def test_the_folder_has_the_methods_of_the_help_text():
    assert {"bottleneck", "lora"} <= set(METHODS)


@each_method
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("layers", [(2, 3), (1,), (4,)])
def test_exactly_the_chosen_blocks_train(name, method, layers, load_tiny):
    model, _ = adapted(load_tiny, name, method, layers)
    assert block_numbers(trainable(model)) == set(layers)


@each_method
@pytest.mark.parametrize("name", ENCODERS)
def test_every_trainable_parameter_learns_and_no_other(name, method, load_tiny, wave):
    model, encoder = adapted(load_tiny, name, method, size=16)  # of four, all ReLUs may be shut
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
    probe = torch.randn(encoder.channels)
    learned = set()
    model.train()
    for _ in range(2):  # the first step moves what starts at zero and lets the gradient through to the rest
        optimizer.zero_grad()
        (model(wave).last_hidden_state @ probe).square().mean().backward()
        learned |= {k for k, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
    assert learned == set(trainable(model))
    for key, parameter in model.named_parameters():
        assert (key in learned) != torch.equal(parameter, before[key]), key


@each_method
@pytest.mark.parametrize("name", ENCODERS)
def test_a_fresh_adapter_changes_nothing(name, method, load_tiny, wave):
    plain = output(load_tiny(name, "audio").model, wave)
    model, _ = adapted(load_tiny, name, method)
    torch.testing.assert_close(output(model, wave), plain, atol=1e-5, rtol=1e-5)


@each_method
def test_a_trained_adapter_changes_only_what_comes_after_it(method, load_tiny, wave):
    encoder = load_tiny("hubert", "audio")
    plain = encoder.encode([wave[0].numpy()], tuple(range(9)))[0]
    model = peft_methods.add_adapter(encoder.model, encoder.blocks, (4, 5), method, 4)
    shake(model)
    encoder.model = model
    now = encoder.encode([wave[0].numpy()], tuple(range(9)))[0]
    changed = [not torch.equal(a, b) for a, b in zip(plain, now, strict=True)]
    assert changed == [False] * 4 + [True] * 5


@each_method
def test_size_is_the_width_of_the_adapter(method, load_tiny):
    counts = [
        sum(p.numel() for p in trainable(adapted(load_tiny, "hubert", method, size=size)[0]).values())
        for size in (2, 4, 8)
    ]
    # a constant (biases of the width of the model) and a part that grows with the size
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0]) > 0


def test_a_bottleneck_is_down_relu_up_and_residual(load_tiny):
    model, encoder = adapted(load_tiny, "hubert", "bottleneck", (2,), 4)
    shake(model)
    layer = encoder.blocks[1].feed_forward
    hidden = torch.randn(1, 5, encoder.channels)
    down, up = layer.bottleneck_down["final"], layer.bottleneck_up["final"]
    with torch.no_grad():
        inner = layer.base_layer(hidden)
        bent = torch.relu(inner @ down.weight.T + down.bias) @ up.weight.T + up.bias
        torch.testing.assert_close(layer(hidden), inner + bent)
    assert down.weight.shape == (4, encoder.channels)


@each_method
def test_plain_peft_loads_what_was_saved(method, load_tiny, wave, tmp_path):
    import peft

    import mertool.peft_methods.bottleneck  # noqa: F401  makes the method known to PEFT

    model, _ = adapted(load_tiny, "hubert", method)
    shake(model)
    expected = output(model, wave)
    peft_methods.save_adapter(model, tmp_path, "final")
    assert {file.name for file in (tmp_path / "final").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    loaded = peft.PeftModel.from_pretrained(load_tiny("hubert", "audio").model, str(tmp_path / "final"))
    assert torch.equal(output(loaded, wave), expected)


@each_method
def test_nothing_of_the_frozen_model_is_saved(method, load_tiny, tmp_path):
    from safetensors.torch import load_file

    model, _ = adapted(load_tiny, "hubert", method)
    peft_methods.save_adapter(model, tmp_path, "final")
    saved = load_file(tmp_path / "final" / "adapter_model.safetensors")
    assert sum(v.numel() for v in saved.values()) == sum(p.numel() for p in trainable(model).values())
    assert block_numbers(saved) == {2, 3}


@each_method
def test_several_adapters_on_one_model(method, load_tiny, wave, tmp_path):
    expected = {}
    for seed, name in enumerate(("final", "fold0", "fold1")):
        model, _ = adapted(load_tiny, "hubert", method)
        torch.manual_seed(10 + seed)
        shake(model)
        expected[name] = output(model, wave)
        peft_methods.save_adapter(model, tmp_path, name)
    loaded = peft_methods.load_adapters(load_tiny("hubert", "audio").model, tmp_path)
    assert torch.equal(output(loaded, wave), expected["final"])  # the one that is active at first
    for name in ("fold1", "fold0", "final", "fold1"):
        loaded.set_adapter(name)
        assert torch.equal(output(loaded, wave), expected[name])
    assert not torch.equal(expected["fold0"], expected["fold1"])


@each_method
@pytest.mark.parametrize("layers", [(0,), (8, 9), ()])
def test_a_layer_that_is_no_block(method, layers, load_tiny):
    with pytest.raises(MertoolError, match=r"cannot be adapted: blocks are 1 to 8"):
        adapted(load_tiny, "hubert", method, layers)


def test_an_unknown_method_gets_a_suggestion(load_tiny):
    with pytest.raises(MertoolError, match=r"unknown PEFT method 'botleneck': did you mean 'bottleneck'\?"):
        adapted(load_tiny, "hubert", "botleneck")


@each_method
def test_blocks_of_another_build_are_an_error(method, load_tiny):
    encoder = load_tiny("clip", "video")
    with pytest.raises(MertoolError, match="have no module named"):
        peft_methods.add_adapter(encoder.model, encoder.blocks, (2,), method, 4)


def test_a_folder_without_adapters(load_tiny, tmp_path):
    with pytest.raises(MertoolError, match="holds no adapter"):
        peft_methods.load_adapters(load_tiny("hubert", "audio").model, tmp_path)

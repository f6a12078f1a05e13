"""The contract of every PEFT method of the folder: where it trains, what it changes, how it is saved."""

import copy
import json
import re

import pytest
import torch
from adapted import WAVE, adapt, close, fresh, last_hidden_state, output, shake, trainable
from torch import nn

from mertool import registry
from mertool.adapters import methods as peft_methods
from mertool.devices import has_onednn_linear
from mertool.encoders.cpu import PackedLinear, optimize_for_cpu
from mertool.encoders.hidden_states import truncate_after
from mertool.errors import MertoolError

METHODS = registry.choices("adapters.methods")
ENCODERS = ["hubert", "hubert_group", "wav2vec2", "wav2vec2_group", "wavlm", "wavlm_group", "whisper_short"]
each_method = pytest.mark.parametrize("method", METHODS)
each_form = pytest.mark.parametrize("name", ["hubert", "wavlm", "whisper_short"])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Several threads only wait for each other on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def block_numbers(names):
    """Blocks, counted from 1, named in parameter names."""
    matches = [re.search(r"\blayers\.(\d+)\.", name) for name in names]
    assert all(matches), names
    return {int(match.group(1)) + 1 for match in matches}


@each_method
@pytest.mark.parametrize("name", ENCODERS)
def test_every_trainable_parameter_learns_and_no_other(name, method, load_tiny):
    """In float64, where a gradient that is zero but for rounding is far below any other."""
    model, encoder = adapt(fresh(load_tiny, name), method, size=16)  # of four, all ReLUs may be shut
    model.double()
    assert block_numbers(trainable(model)) == {2, 3}
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
    probe = torch.randn(encoder.channels).double()
    learned = set()
    for _ in range(2):  # the first step moves what starts at zero and lets the gradient through to the rest
        optimizer.zero_grad()
        (last_hidden_state(model, torch.float64) @ probe).square().mean().backward()
        learned |= {k for k, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-8}
        optimizer.step()
    assert learned == set(trainable(model))
    for key, parameter in model.named_parameters():
        assert (key in learned) != torch.equal(parameter, before[key]), key


@each_method
@each_form
@pytest.mark.parametrize("layers", [(1,), (2, 4)])
def test_exactly_the_chosen_blocks_train(name, method, layers, load_tiny):
    model, _ = adapt(fresh(load_tiny, name), method, layers, size=16)
    assert block_numbers(trainable(model)) == set(layers)
    last_hidden_state(model).square().mean().backward()
    assert block_numbers(k for k, p in model.named_parameters() if p.grad is not None) == set(layers)


# Attention gives a share to whatever it sees, so no start of prompt vectors leaves a block as it is.
@pytest.mark.parametrize("method", sorted({*METHODS} - {"prompt"}))
@pytest.mark.parametrize("name", ENCODERS)
def test_a_fresh_adapter_changes_nothing(name, method, load_tiny):
    model, _ = adapt(fresh(load_tiny, name), method)
    torch.testing.assert_close(output(model), output(fresh(load_tiny, name).model), atol=1e-5, rtol=1e-5)


@each_method
@each_form
def test_a_trained_adapter_changes_only_what_comes_after_it(name, method, load_tiny):
    layers = tuple(range(5))
    encoder = fresh(load_tiny, name)
    truncate_after(encoder.blocks, 4)
    (plain,) = encoder.encode([WAVE[0].numpy()], layers)
    model, encoder = adapt(encoder, method, (2, 3))
    shake(model)
    (now,) = encoder.encode([WAVE[0].numpy()], layers)
    changed = [not torch.equal(a, b) for a, b in zip(plain, now, strict=True)]
    between = method != "layer-adapters"  # which change nothing before the last chosen block
    assert changed == [False, False, between, True, True]


@each_method
@each_form
def test_a_clip_alone_and_in_a_padded_batch_has_the_same_features(name, method, load_tiny):
    model, encoder = adapt(fresh(load_tiny, name), method, (1, 2))
    shake(model)
    model.eval()
    waves = [WAVE[0].numpy(), WAVE[1, :1700].numpy()]
    together = encoder.encode(waves, (1, 2, 3))
    for wave, batched in zip(waves, together, strict=True):
        assert close(batched, encoder.encode([wave], (1, 2, 3))[0])


@each_method
def test_a_copy_is_a_model_of_its_own(method, load_tiny):
    model, _ = adapt(fresh(load_tiny, "wavlm"), method)
    model(WAVE)  # with a graph behind it
    shake(model)
    expected = output(model)
    clone = copy.deepcopy(model)
    assert torch.equal(output(clone), expected)
    shake(clone, seed=1)
    assert not torch.equal(output(clone), expected)
    assert torch.equal(output(model), expected)


@each_method
@each_form
def test_plain_peft_loads_what_was_saved(name, method, load_tiny, tmp_path):
    import peft
    from safetensors.torch import load_file

    model, _ = adapt(fresh(load_tiny, name), method)
    shake(model)
    expected = output(model)
    peft_methods.save_adapter(model, tmp_path, "final")
    folder = tmp_path / "final"
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    saved = load_file(folder / "adapter_model.safetensors")
    # A method may save more than it trains, as VeRA does with its random projections, but nothing of the frozen model.
    # Tensors are compared by value, because PEFT saves some under other names.
    for name_of_parameter, parameter in trainable(model).items():
        assert any(torch.equal(parameter, tensor) for tensor in saved.values()), name_of_parameter
    frozen_names = fresh(load_tiny, name).model.state_dict().keys()
    assert not {key.removeprefix("base_model.model.") for key in saved} & frozen_names
    lists = [
        value for value in json.loads((folder / "adapter_config.json").read_text()).values() if type(value) is list
    ]
    assert lists == [sorted(value) for value in lists]  # the same file each time
    loaded = peft.PeftModel.from_pretrained(fresh(load_tiny, name).model, str(folder))
    torch.testing.assert_close(output(loaded), expected)
    assert not trainable(loaded)


@each_method
@each_form
@pytest.mark.parametrize("packed", [False, True])
def test_adapters_of_all_folds_on_one_model(name, method, packed, load_tiny, tmp_path):
    """As extraction uses them: the blocks above are gone, on the CPU the layers are packed, adapters change."""
    if packed and not has_onednn_linear():
        pytest.skip("this build of torch has no oneDNN")
    expected = {}
    for seed, adapter in enumerate(("final", "fold0", "fold1")):
        model, encoder = adapt(fresh(load_tiny, name), method, (2, 3))
        shake(model, seed)
        model.eval()
        (expected[adapter],) = encoder.encode([WAVE[0].numpy()], (2, 3))
        peft_methods.save_adapter(model, tmp_path, adapter)
    assert not close(expected["fold0"], expected["fold1"])
    encoder = fresh(load_tiny, name)
    encoder.model = peft_methods.load_adapters(encoder.model, tmp_path)
    truncate_after(encoder.blocks, 3)
    if packed:
        optimize_for_cpu(encoder.model)
        assert any(isinstance(module, PackedLinear) for module in encoder.blocks[2].modules())
    assert close(encoder.encode([WAVE[0].numpy()], (2, 3))[0], expected["final"])  # the one that is active at first
    for adapter in ("fold1", "fold0", "final", "fold1"):
        encoder.model.set_adapter(adapter)
        assert close(encoder.encode([WAVE[0].numpy()], (2, 3))[0], expected[adapter])


class Skipped(nn.Module):
    """Stands for a block whose output is known."""

    def forward(self, hidden_states, **_):
        return hidden_states


@each_method
def test_what_was_trained_on_a_part_of_the_model_fits_the_whole(method, load_tiny, tmp_path):
    """Blocks below the first chosen one are replaced for training, those above the last one are gone."""
    encoder = fresh(load_tiny, "hubert")
    encoder.blocks[0] = Skipped()
    truncate_after(encoder.blocks, 3)
    model, _ = adapt(encoder, method, (2, 3))
    shake(model)
    peft_methods.save_adapter(model, tmp_path, "final")
    whole_model = peft_methods.load_adapters(fresh(load_tiny, "hubert").model, tmp_path)
    parameters = dict(whole_model.named_parameters())
    for key, parameter in trainable(model).items():
        assert torch.equal(parameters[key], parameter)
    added = parameters.keys() - {key.replace(".base_layer", "") for key in parameters}
    assert block_numbers(added) <= {2, 3}


@each_method
def test_the_output_is_of_the_type_of_the_model(method, load_tiny, tmp_path):
    model, _ = adapt(fresh(load_tiny, "wavlm"), method)
    shake(model)
    peft_methods.save_adapter(model, tmp_path, "final")
    encoder = fresh(load_tiny, "wavlm")
    model = peft_methods.load_adapters(encoder.model.bfloat16(), tmp_path)
    with torch.inference_mode():
        assert last_hidden_state(model, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("layers", [(0,), (8, 9), ()])
def test_a_layer_that_is_no_block(method, layers, load_tiny):
    with pytest.raises(MertoolError, match=r"cannot be adapted: blocks are 1 to 8"):
        adapt(fresh(load_tiny, "hubert"), method, layers)


@each_method
def test_blocks_of_another_build_are_an_error(method, load_tiny):
    encoder = load_tiny("clip", "video")
    with pytest.raises(MertoolError, match="have no module named feed_forward or fc2"):
        peft_methods.add_adapter(encoder.model, encoder.blocks, (2,), method=method, size=4)


def test_an_unknown_method_gets_a_suggestion(load_tiny):
    with pytest.raises(MertoolError, match=r"unknown PEFT method 'botleneck': did you mean 'bottleneck'\?"):
        adapt(fresh(load_tiny, "hubert"), "botleneck")


def test_a_folder_without_adapters(load_tiny, tmp_path):
    with pytest.raises(MertoolError, match="holds no adapter"):
        peft_methods.load_adapters(fresh(load_tiny, "hubert").model, tmp_path)


def test_adapters_of_another_encoder_are_an_error(load_tiny, tmp_path):
    """PEFT itself would only warn, and leave what it did not find as it was."""
    model, _ = adapt(fresh(load_tiny, "hubert"), "bottleneck", (7, 8))
    peft_methods.save_adapter(model, tmp_path, "final")
    encoder = fresh(load_tiny, "hubert")
    truncate_after(encoder.blocks, 7)
    with pytest.raises(MertoolError, match=r"the adapters final in .* do not fit this encoder"):
        peft_methods.load_adapters(encoder.model, tmp_path)


def test_many_targets_are_saved_by_their_full_names(tmp_path):
    """PEFT shortens 20 names and more to endings, which are those of other blocks too in the whole model."""
    from transformers import HubertConfig, HubertModel

    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 13}
    config = HubertConfig(
        **small,
        conv_dim=(4,),
        conv_stride=(5,),
        conv_kernel=(10,),
        num_conv_pos_embeddings=2,
        num_conv_pos_embedding_groups=2,
    )
    model = HubertModel(config)
    truncate_after(model.encoder.layers, 10)
    model = peft_methods.add_adapter(model, model.encoder.layers, range(1, 11), method="lora", size=2)
    peft_methods.save_adapter(model, tmp_path, "final")
    whole_model = peft_methods.load_adapters(HubertModel(config), tmp_path)
    assert block_numbers(k for k, _ in whole_model.named_parameters() if "lora_" in k) == set(range(1, 11))

"""Adapter folders from strangers: what is not an adapter of ours is one line, and nothing that they name is loaded."""

import json
import os
import re

import pytest
import torch
from adapted import adapt, fresh, shake
from safetensors.torch import load_file, save_file

from mertool import registry
from mertool.adapters import methods as peft_methods
from mertool.errors import MertoolError

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def saved(load_tiny, tmp_path):
    """A function that saves a new adapter of a method, and returns its folder."""

    def save(method):
        model, _ = adapt(fresh(load_tiny, "hubert"), method)
        shake(model)
        peft_methods.save_adapter(model, tmp_path, "final")
        return tmp_path / "final"

    return save


@pytest.fixture
def refused(load_tiny):
    """A function that loads the adapters beside a folder, which must fail in one line; the message."""

    def load(folder):
        encoder = fresh(load_tiny, "hubert")
        with pytest.raises(MertoolError) as error:
            peft_methods.load_adapters(encoder.model, folder.parent)
        assert "\n" not in str(error.value)
        return str(error.value)

    return load


def change(folder, **settings):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.mark.parametrize("method", registry.choices("adapters.methods"))
def test_settings_of_where_an_adapter_comes_from_do_not_matter(method, saved, load_tiny):
    folder = saved(method)
    change(folder, base_model_name_or_path="/elsewhere", peft_version="99", inference_mode=False, unknown_setting=3)
    change(folder, auto_mapping={"parent_library": "foreign", "base_model_class": "Model"})
    model = peft_methods.load_adapters(fresh(load_tiny, "hubert").model, folder.parent)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "x", "tokenizer_kwargs": {"trust_remote_code": True}},
        {"peft_type": "XLORA"},
        {"peft_type": ["LORA"]},
        {"peft_type": None},
        {"megatron_config": {"x": 1}, "megatron_core": "foreign"},
        {"init_lora_weights": "corda", "corda_config": {"cache_file": "x.pt"}},
        {"layer_replication": [[0, 99]]},
        {"rank_pattern": {"(a+)+": 3}},
        {"modules_to_save": ["encoder"]},
        {"lora_alpha": 1e308},
        {"r": True},
        {"r": -1},
        {"r": 10**9, "lora_alpha": 10**9},
        {"r": "4"},
        {"r": 5, "lora_alpha": 5},
    ],
)
def test_a_configuration_that_no_method_writes_is_refused(settings, saved, refused):
    folder = saved("lora")
    change(folder, **settings)
    assert re.search(r"adapter_config.json is of no method of mertool: valid: bitfit, bottleneck,", refused(folder))


@pytest.mark.parametrize("targets", ["(a|a)*b", [], [""], [1], None, {}, [["x"]]])
def test_targets_are_a_list_of_names(targets, saved, refused):
    folder = saved("bottleneck")
    change(folder, target_modules=targets)
    assert "target_modules must be a list of names" in refused(folder)


@pytest.mark.parametrize("targets", [["encoder.layers.99.feed_forward"], ["feature_projection"], ["encoder"]])
@pytest.mark.parametrize("method", registry.choices("adapters.methods"))
def test_targets_that_the_encoder_has_not_or_that_do_not_suit_the_method(method, targets, saved, refused):
    folder = saved(method)
    change(folder, target_modules=targets)
    assert re.search("do not fit this encoder|are damaged|is of no method", refused(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"a":' * 100_000, "\xff\xfe"])
def test_a_configuration_that_is_no_json_object(content, saved, refused):
    folder = saved("lora")
    (folder / "adapter_config.json").write_text(content, encoding="latin-1")
    assert "adapter_config.json cannot be read" in refused(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
def test_a_pipe_in_the_place_of_a_file_is_never_opened(name, saved, refused):
    folder = saved("lora")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert name in refused(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
def test_a_file_without_permission(name, saved, refused):
    folder = saved("lora")
    (folder / name).chmod(0)
    assert name in refused(folder)


def cut(tensors):
    return {**tensors, min(tensors): tensors[min(tensors)][:1]}


def without_one(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != min(tensors)}


def with_another(tensors):
    return {**tensors, "base_model.model.other": torch.zeros(1)}


def with_nan(tensors):
    return {**tensors, min(tensors): torch.full_like(tensors[min(tensors)], torch.nan)}


def with_infinity(tensors):
    return {**tensors, min(tensors): torch.full_like(tensors[min(tensors)], -torch.inf)}


def with_integers(tensors):
    return {**tensors, min(tensors): tensors[min(tensors)].long()}


def without_any(tensors):
    return {}


@pytest.mark.parametrize(
    ("change_tensors", "words"),
    [
        (cut, "do not fit this encoder"),
        (without_one, "do not fit this encoder"),
        (with_another, "do not fit this encoder"),
        (with_nan, "has values that are no finite numbers"),
        (with_infinity, "has values that are no finite numbers"),
        (with_integers, "has values that are no finite numbers"),
        (without_any, "is of no method of mertool"),
    ],
)
def test_tensors_that_are_not_those_of_the_adapter(change_tensors, words, saved, refused):
    folder = saved("bottleneck")
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor.contiguous() for name, tensor in change_tensors(tensors).items()}, folder / WEIGHTS)
    assert words in refused(folder)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"{}x"])
def test_weights_that_are_no_safetensors(content, saved, refused):
    folder = saved("lora")
    (folder / WEIGHTS).write_bytes(content)
    assert WEIGHTS in refused(folder)


def test_a_pickle_beside_the_configuration_is_not_read(saved, refused):
    folder = saved("lora")
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    assert WEIGHTS in refused(folder)


@pytest.mark.parametrize(
    "tensors",
    [
        {"other": torch.zeros(9, 96)},
        {"mean_offset": torch.zeros(9, 95)},
        {"mean_offset": torch.zeros(9)},
        {"mean_offset": torch.full((9, 96), torch.nan)},
        {"mean_offset": torch.zeros(9, 96, dtype=torch.int64)},
    ],
)
def test_a_mean_offset_that_is_none(tensors, saved):
    folder = saved("lora")
    save_file(tensors, folder / "mean_offset.safetensors")
    with pytest.raises(MertoolError, match=r"mean_offset\.safetensors is damaged: it must hold finite values of shape"):
        peft_methods.load_mean_offsets(folder.parent, (9, 96))

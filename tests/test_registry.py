"""The folder is the registry: a file is a choice."""

import sys

import pytest

from mertool import registry
from mertool.errors import MertoolError


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "heads"
    folder.mkdir()
    for name in ("concat", "cross_attention", "_inputs", "__init__"):
        (folder / f"{name}.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    return "heads"


def test_files_are_choices_and_underscores_are_hidden(package):
    assert registry.choices(package) == ["concat", "cross-attention"]


def test_a_new_file_is_a_new_choice(package):
    (registry.ROOT / package / "gated.py").touch()
    registry.check(package, "head", "gated")


def test_an_unknown_name_lists_the_files(package):
    with pytest.raises(MertoolError, match="unknown head 'cros-attention': did you mean 'cross-attention'"):
        registry.load(package, "head", "cros-attention")


def test_the_help_of_a_path_is_no_choice(package):
    for name in ("_inputs", "../heads/concat", ""):
        with pytest.raises(MertoolError, match="valid: concat, cross-attention"):
            registry.check(package, "head", name)


@pytest.mark.parametrize("room", ["fusion.heads", "adapters.methods"])
def test_names_of_the_package_are_known_without_importing(room):
    before = set(sys.modules)
    assert registry.choices(room)
    assert set(sys.modules) == before


def test_a_choice_is_loaded_by_its_name():
    assert registry.load("fusion.heads", "head", "concat").__name__ == "mertool.fusion.heads.concat"

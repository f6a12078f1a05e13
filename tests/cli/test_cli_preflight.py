"""Devices that a machine cannot have are told without torch."""

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mertool.cli import preflight
from mertool.errors import MertoolError

BUILDS = {
    "cpu": "cuda: Optional[str] = None\nhip: Optional[str] = None\n",
    "cuda": "debug = False\ncuda: Optional[str] = '13.2'\nhip: Optional[str] = None\n",
    "hip": "cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n",
}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that pretends a build of torch, and a driver of NVIDIA or none."""

    def pretend(build, *, driver):
        def open_library(name):
            if not driver:
                raise OSError(f"{name}: cannot open shared object file")

        (tmp_path / "version.py").write_text(BUILDS[build])
        spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(preflight.ctypes, "CDLL", open_library)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return pretend


@pytest.mark.parametrize(
    ("build", "driver", "expected"),
    [("cpu", True, False), ("cuda", False, False), ("cuda", True, True), ("hip", False, True)],
)
def test_a_gpu_needs_a_build_and_a_driver(build, driver, expected, machine):
    machine(build, driver=driver)
    assert preflight.may_have_cuda() is expected


@pytest.mark.parametrize("visible", ["", "-1"])
def test_gpus_that_are_hidden_are_not_there(visible, machine, monkeypatch):
    machine("cuda", driver=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert not preflight.may_have_cuda()


def test_a_device_that_cannot_be_there(machine, monkeypatch):
    machine("cpu", driver=False)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(
            MertoolError, match=f"device '{name}' is not there .*--device auto or cpu; `mertool doctor`"
        ):
            preflight.check_device(name)
    for name in ("auto", "cpu"):
        preflight.check_device(name)


def test_a_name_of_predictions_is_refused_before_torch(tmp_path):
    code = f"""import sys
from mertool.cli import main
sys.argv = ["mertool", "predict", {str(tmp_path)!r}, {str(tmp_path)!r}, "-o", "labels.txt"]
try:
    main()
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (1, "False")
    assert "labels.txt: give a name that ends in .csv or .jsonl" in done.stderr

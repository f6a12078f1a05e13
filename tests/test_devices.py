"""Devices, number formats and seeds."""

import pytest
import torch

from mertool.devices import (
    computes_bfloat16,
    dtype_name,
    multiplies_exactly,
    onednn_matmul,
    resolve_device,
    resolve_dtype,
    seeded_torch,
)
from mertool.errors import MertoolError


@pytest.fixture(autouse=True)
def _as_it_is(monkeypatch):
    """The suite's other tests compute in float32 on every CPU; here `auto` is what it is for a user."""
    monkeypatch.setattr("mertool.devices.computes_bfloat16", computes_bfloat16)


@pytest.fixture
def bare(monkeypatch):
    """A machine with nothing but a CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


def test_auto_is_the_cpu_where_there_is_nothing_else(bare):
    assert resolve_device("auto") == torch.device("cpu")


def test_auto_is_the_gpu_where_there_is_one(two_gpus):
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there(name, bare):
    with pytest.raises(MertoolError, match=f"device '{name}' is not there .*--device auto or cpu; `mertool doctor`"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["cuda:2", "cuda:99"])
def test_a_gpu_that_is_not_there(name, two_gpus):
    with pytest.raises(MertoolError, match=f"device '{name}' is not there"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "CUDA", "", "cpu:x", "cpu0", "cuda:-1", "cuda:x", "cuda:", "mps:1", "auto:0"])
def test_an_unknown_device(name, bare):
    with pytest.raises(MertoolError, match=f"unknown device '{name}': valid: auto, cpu, cuda, cuda:N, mps"):
        resolve_device(name)


def test_auto_dtype_is_bfloat16_on_a_gpu_that_computes_it(two_gpus, monkeypatch):
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert resolve_dtype("auto", torch.device("cuda")) is torch.float32


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_dtype_on_a_cpu_is_what_it_computes(capabilities, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert resolve_dtype("auto", torch.device("cpu")) is dtype


def test_auto_dtype_is_float32_without_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32


@pytest.mark.parametrize(("amx", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_dtype_with_an_older_torch(amx, dtype, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert resolve_dtype("auto", torch.device("cpu")) is dtype


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_dtype_by_name(name):
    dtype = resolve_dtype(name, torch.device("cpu"))
    assert dtype is getattr(torch, name)
    assert dtype_name(dtype) == name


def test_an_unknown_dtype():
    with pytest.raises(MertoolError, match="unknown dtype 'float8': did you mean"):
        resolve_dtype("float8", torch.device("cpu"))


def test_seeded_torch_repeats_its_draws_and_leaves_the_global_state():
    draws = []
    for seed in ((3,), (3,), (4,), (3, 0), (3, 1)):
        torch.rand(len(draws))  # what was drawn before has no influence
        with seeded_torch(*seed):
            draws.append(torch.rand(1).item())
    assert draws[0] == draws[1]
    assert len(set(draws[1:])) == 4
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    with seeded_torch(3):
        torch.rand(5)
    assert torch.equal(torch.rand(2), expected)


def missing_operator(a, b):
    raise NotImplementedError("no such operator in this build")


@pytest.mark.parametrize(
    ("multiply", "exact"),
    [
        (torch.matmul, True),
        (lambda a, b: (a.bfloat16() @ b.bfloat16()).float(), False),
        (lambda a, b: a.bfloat16().float() @ b.bfloat16().float(), False),  # as units that round their inputs do
        (lambda a, b: a @ b if a.shape[1] < a.shape[2] else 1.01 * a @ b, False),  # of a gradient alone
        (missing_operator, False),
    ],
)
def test_products_are_tried_for_the_accuracy_of_float32(multiply, exact):
    assert multiplies_exactly(multiply) is exact


@pytest.mark.parametrize("exact", [True, False])
def test_onednn_multiplies_only_where_it_is_exact(exact, monkeypatch):
    monkeypatch.setattr("mertool.devices._onednn_multiplies_exactly", lambda: exact)
    before = torch.backends.mkldnn.matmul.fp32_precision
    with onednn_matmul():
        assert torch.backends.mkldnn.matmul.fp32_precision == ("bf16" if exact else before)
    assert torch.backends.mkldnn.matmul.fp32_precision == before

"""Which device and which number format a command uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch

from mertool.errors import MertoolError, check_choice
from mertool.options.shared import DTYPES


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU, else Apple's, else the CPU; a device that is not there is an error."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = name.partition(":")
    available = {
        "cpu": not number or number.isdecimal(),
        "cuda": torch.cuda.is_available() and int(number or 0) < torch.cuda.device_count()
        if number.isdecimal() or not number
        else False,
        "mps": torch.backends.mps.is_available(),
    }
    if kind not in available:
        raise MertoolError(f"unknown device '{name}': valid: auto, cpu, cuda, cuda:N, mps")
    if not available[kind]:
        raise MertoolError(
            f"device '{name}' is not there (torch {torch.__version__}): use --device auto or cpu; "
            "`mertool doctor` shows what this machine has"
        )
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device computes it natively, else float32."""
    check_choice("dtype", name, DTYPES)
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if computes_bfloat16(device) else torch.float32


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, and not by way of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    # Older versions of torch tell the same by functions of their own.
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe() for probe in probes if probe)


@cache
def has_onednn_linear() -> bool:
    """Whether this build of torch has oneDNN's linear operators, `torch.ops.mkldnn._linear_pointwise` and its packing.

    Builds differ in it and no query tells them apart, so the operators are called once.
    """
    try:
        with torch.inference_mode():
            weight = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(8, 8))
            torch.ops.mkldnn._linear_pointwise(torch.zeros(1, 8), weight, None, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device; to a GPU from pinned memory, so that the copy runs beside the computation."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had not enough memory; of the CPU's, torch tells by the message alone."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def seeded_torch(seed: int, *purpose: int) -> Iterator[None]:
    """Seed torch's global generators by numbers within the block, and restore their state after it.

    For code that can only draw from the global generators, such as initial weights and dropout: what it draws then
    depends on these numbers alone, not on what was drawn before. All other code takes generators of its own.
    """
    if purpose:
        seed = int(np.random.SeedSequence((seed, *purpose)).generate_state(1)[0])
    # Saving the state of a GPU that is not in use would reserve memory on it.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield

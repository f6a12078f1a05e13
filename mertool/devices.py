"""Which device and which number format a command uses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

from mertool.errors import MertoolError, check_choice
from mertool.options.shared import DTYPES, parse_device


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU, else Apple's, else the CPU; a device that is not there is an error."""
    kind, number = parse_device(name)
    if kind == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    is_available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (number or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not is_available[kind]:
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
    """Return True if the device multiplies bfloat16 in hardware, and not by way of float32."""
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


def precise_device(device: torch.device) -> torch.device:
    """Return where float64 and factorisations of matrices are computed for `device`: on it, or for MPS on the CPU.

    Apple's GPUs have no float64, and torch has few operators of `torch.linalg` for them.
    """
    return torch.device("cpu") if device.type == "mps" else device


@cache
def has_onednn_linear() -> bool:
    """Return True if torch has oneDNN's linear operators, `torch.ops.mkldnn._linear_pointwise` and its packing."""

    def linear(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.T.contiguous())
        return torch.ops.mkldnn._linear_pointwise(inputs, packed, None, attr="none", scalars=[], algorithm="")

    return multiplies_exactly(lambda a, b: torch.stack([linear(*pair) for pair in zip(a, b, strict=True)]))


@contextmanager
def onednn_matmul() -> Iterator[None]:
    """Let oneDNN multiply float32 matrices where it proves exact; a context or the decorator of a function.

    The setting is that of the whole process.

    torch uses MKL for them, which is slow on processors that are not Intel's, unless they may be rounded to bfloat16.
    oneDNN rounds only on processors with bfloat16 units; on others it multiplies in float32, twice as fast as MKL.
    """
    settings = _float32_matmul_settings()
    precision = settings.fp32_precision
    try:
        settings.fp32_precision = "bf16" if _onednn_multiplies_exactly() else precision
        yield
    finally:
        settings.fp32_precision = precision


def _float32_matmul_settings() -> Any:
    """Return torch's settings of oneDNN's matrix products, which its stubs lack."""
    mkldnn: Any = torch.backends.mkldnn
    return mkldnn.matmul


@cache
def _onednn_multiplies_exactly() -> bool:
    """Return True if products keep the accuracy of float32 when torch is allowed to round them to bfloat16."""
    settings = _float32_matmul_settings()
    precision = settings.fp32_precision
    try:
        settings.fp32_precision = "bf16"
        return multiplies_exactly(torch.bmm)
    finally:
        settings.fp32_precision = precision


def multiplies_exactly(multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> bool:
    """Return True if `multiply` runs here and its products of matrices (B, n, k) and (B, k, m) are of float32 accuracy.

    Builds of torch and processors differ in both, and no query tells them apart, so products are computed: of the
    shapes of a forward pass, and of its gradients.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 32, 512, generator=generator)
    weights = torch.randn(4, 512, 128, generator=generator)
    outputs = values @ weights
    try:
        with torch.inference_mode():
            errors = [
                (multiply(a, b).double() - a.double() @ b.double()).abs().max()
                / (a.norm(dim=-1).max() * b.norm(dim=-2).max())
                for a, b in ((values, weights), (values.mT, outputs), (outputs, weights.mT))
            ]
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return max(map(float, errors)) < 1e-5  # rounding to bfloat16 errs by 3e-4


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device; to a GPU from pinned memory, so that the copy runs beside the computation."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if a device had not enough memory; of the CPU's, torch tells by the message alone."""
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

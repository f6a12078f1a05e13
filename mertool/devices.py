"""Which device and which number format a command uses."""

import os
import random

import torch

from mertool.errors import MertoolError, choose

DTYPES = ("auto", "float32", "bfloat16", "float16")


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
    """`auto` is bfloat16 on a GPU that computes it, else float32."""
    choose("dtype", name, DTYPES)
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def seed_everything(seed: int) -> None:
    """Seed Python's and torch's generators; NumPy code takes its own generator."""
    random.seed(seed)
    torch.manual_seed(seed)


def worker_count(asked: int | None = None) -> int:
    """Decoder processes: what was asked for, else the cores this process may use, at most eight."""
    if asked:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores))

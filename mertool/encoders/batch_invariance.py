"""A test at load: hidden states must not depend on the padding that a batch adds."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mertool.encoders.base import Encoder
from mertool.encoders.masked_group_norm import MaskedGroupNorm

# Largest difference of a hidden state, as a share of its norm, that is taken for rounding. Convolutions of a GPU
# compute float32 in TF32, and half precision adds up over the blocks; padding that leaks changes states by far more.
TOLERANCE = {torch.float32: 1e-2}
TOLERANCE_ON_CPU = {torch.float32: 1e-3}
TOLERANCE_OF_HALF_PRECISION = 0.1
# Padded seconds of audio in one forward pass, however large the batch: one film must not need the memory of a film.
MAX_SECONDS_PER_FORWARD = {"cpu": 60}
MAX_SECONDS_PER_FORWARD_ON_GPU = 640


def find_norm_over_time(model: nn.Module) -> str | None:
    """Return the name of a layer whose output for padding depends on statistics over time, None without one.

    Batch norm makes padding other than zero, which the positional convolution of some HuBERTs then mixes into the
    frames beside it; group norm and instance norm count padding in their statistics. A MaskedGroupNorm does not.
    """
    masked = {id(module.norm) for module in model.modules() if isinstance(module, MaskedGroupNorm)}
    for name, module in model.named_modules():
        if isinstance(module, _NormBase | nn.GroupNorm) and id(module) not in masked:
            return name
    return None


def is_batch_invariant(encoder: Encoder, shorter: Any, longer: Any, *, dtype: torch.dtype) -> bool:
    """Return True if a prepared input has the same hidden states alone and padded to the length of a longer one.

    `dtype` is that of the weights, by which rounding is judged.
    """
    layers = range(encoder.num_layers + 1)
    (alone,) = encoder.encode_prepared([shorter], layers)
    padded = encoder.encode_prepared([shorter, longer], layers)[0]
    error = (padded - alone).norm(dim=-1) / alone.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    tolerances = TOLERANCE_ON_CPU if encoder.device.type == "cpu" else TOLERANCE
    # A comparison with NaN is false: such a model gets no padding either.
    return bool(error.max() <= tolerances.get(dtype, TOLERANCE_OF_HALF_PRECISION))


def group_by_length(lengths: Iterable[float], *, supports_padding: bool) -> list[list[int]]:
    """Return the indices of inputs that may share a forward pass: all of them, or those of equal length."""
    groups: dict[float, list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault(0 if supports_padding else length, []).append(index)
    return list(groups.values())


def forward_passes(seconds: Sequence[float], *, device_type: str, supports_padding: bool = True) -> list[list[int]]:
    """Return the indices of audio windows of so many seconds in as many forward passes as the device needs."""
    most = MAX_SECONDS_PER_FORWARD.get(device_type, MAX_SECONDS_PER_FORWARD_ON_GPU)
    passes = []
    for group in group_by_length(seconds, supports_padding=supports_padding):
        size = max(1, int(most / max(seconds[index] for index in group)))
        passes += [group[start : start + size] for start in range(0, len(group), size)]
    return passes

"""Making an accelerate `Accelerator`: for one process, or for several under `torchrun` or `accelerate launch`."""

import os
from contextlib import nullcontext
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, patch_environment

from mertool.devices import dtype_name
from mertool.errors import MertoolError

MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
# The other processes wait while the first one extracts the frozen layers, which takes hours for a large corpus.
PROCESS_GROUP_TIMEOUT = timedelta(days=1)


def is_distributed() -> bool:
    """Return True if this process is one of several that train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def make_accelerator(device: torch.device, dtype: torch.dtype) -> Accelerator:
    """Return an accelerator for mixed precision of `dtype` on `device`.

    Of several processes each takes the device of its local rank instead. Raises MertoolError for float16 on a CPU.
    """
    if dtype == torch.float16 and device.type == "cpu":
        raise MertoolError("--dtype float16 does not train on a CPU: give float32 or bfloat16")
    device_choice = nullcontext()
    if not is_distributed():
        # accelerate keeps its settings in a singleton: those of an earlier stage in this process would stay.
        AcceleratorState._reset_state(reset_partial_state=True)
        # Only while accelerate reads it, since child processes would take this device as well.
        device_choice = patch_environment(ACCELERATE_TORCH_DEVICE=device)
    with device_choice:
        return Accelerator(
            mixed_precision=MIXED_PRECISION[dtype_name(dtype)],
            cpu=device.type == "cpu",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_GROUP_TIMEOUT)],
        )

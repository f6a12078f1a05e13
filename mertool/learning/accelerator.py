"""Starting accelerate: one process, or several under `torchrun` or `accelerate launch`."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from mertool.devices import dtype_name
from mertool.errors import MertoolError

MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
LONGEST_WAIT = timedelta(days=1)  # while the first process extracts the frozen layers


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(device: torch.device, dtype: torch.dtype) -> Accelerator:
    """An accelerator on `device`; of several processes each takes the device of its local rank."""
    if dtype == torch.float16 and device.type == "cpu":
        raise MertoolError("--dtype float16 does not train on a CPU: give float32 or bfloat16")
    if not is_distributed():
        # Settings of an earlier stage in the same process would be kept.
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    return Accelerator(
        mixed_precision=MIXED[dtype_name(dtype)],
        cpu=device.type == "cpu",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )

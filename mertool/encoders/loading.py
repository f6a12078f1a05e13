"""Loading a checkpoint whole: transformers fills what is missing with random numbers and a log line."""

from pathlib import Path
from typing import Any

import torch
import transformers

# Parts that no hidden state depends on; many checkpoints do not have them.
UNUSED = ("pooler", "masked_spec_embed", "mask_token")


# How `from_pretrained` calls the number format of the weights.
DTYPE = "torch_dtype" if transformers.__version__ < "4.56" else "dtype"


def load_model(kind: Any, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """`kind.from_pretrained(folder)` in `dtype`; ValueError if weights are missing."""
    options[DTYPE] = dtype
    model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    missing = sorted(name for name in info["missing_keys"] if not any(part in name for part in UNUSED))
    if missing:
        raise ValueError(f"{len(missing)} weights of a {type(model).__name__} are not in it (first: {missing[0]})")
    return model

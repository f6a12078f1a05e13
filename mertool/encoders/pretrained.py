"""The calls of transformers that read a checkpoint's folder; none of them runs code from the folder or asks to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer

from mertool.errors import MertoolError

# Modules that no hidden state depends on; many checkpoints do not have them.
UNUSED_MODULES = ("pooler", "masked_spec_embed", "mask_token")


@contextmanager
def _explain_foreign_code() -> Iterator[None]:
    """Tell in one line that a folder needs code of its own, which transformers tells in a paragraph."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise MertoolError(
            "it needs Python code of its own (auto_map), which mertool never runs: give a model of a type that "
            "transformers has"
        ) from error


@_explain_foreign_code()
def load_config(folder: Path) -> Any:
    """Return the configuration of the model in `folder`, an instance of its class in transformers."""
    # Without the argument transformers asks on the terminal whether to run the folder's code.
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


@_explain_foreign_code()
def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in `folder`."""
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


@_explain_foreign_code()
def load_feature_extractor(folder: Path) -> Any:
    """Return the feature extractor in `folder`, which makes the inputs of an audio model."""
    return AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)


@_explain_foreign_code()
def load_pretrained(model_class: Any, folder: Path, *, device: torch.device, dtype: torch.dtype, **options: Any) -> Any:
    """Return `model_class.from_pretrained(folder)` on a device, in evaluation mode.

    Raises ValueError if weights are missing, which transformers fills with random numbers and a log line. On a CPU
    attention is plain matrix products ("eager"), because torch's fused kernel is slower there: by 2 to 7 % for HuBERT,
    8 to 10 % for CLIP, in bfloat16 by half.
    """
    if device.type == "cpu":
        options.setdefault("attn_implementation", "eager")
    model, info = model_class.from_pretrained(
        folder,
        torch_dtype=dtype,  # `dtype` in newer versions of transformers, which know this name too
        output_loading_info=True,
        trust_remote_code=False,
        weights_only=True,  # of pytorch_model.bin, which is a pickle
        **options,
    )
    missing = sorted(name for name in info["missing_keys"] if not any(unused in name for unused in UNUSED_MODULES))
    if missing:
        raise ValueError(f"{len(missing)} weights of a {type(model).__name__} are not in it (first: {missing[0]})")
    return model.to(device).eval()

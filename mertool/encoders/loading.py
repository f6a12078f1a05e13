"""Loading a checkpoint as an encoder or as a speech recogniser."""

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mertool.encoders.checkpoint_files import loadable_view
from mertool.encoders.checkpoints import CheckpointRef
from mertool.encoders.recognition import SpeechRecognition
from mertool.encoders.table import DEFAULT_ENCODERS
from mertool.errors import MertoolError, check_choice

if TYPE_CHECKING:  # importing them loads torch
    import torch

    from mertool.encoders.asr import Recogniser
    from mertool.encoders.base import Encoder


def load_encoder(
    checkpoint: CheckpointRef, modality: str, *, device: "torch.device", dtype: "torch.dtype"
) -> "Encoder":
    """Load an encoder onto a device by the family of its model type; raises MertoolError for a damaged folder."""
    check_choice("modality", modality, DEFAULT_ENCODERS)
    family = checkpoint.family(modality).module()
    encoder: Encoder = _load(family.load, checkpoint, f"an encoder for {modality}", device=device, dtype=dtype)
    encoder.model.name_or_path = str(checkpoint.folder)  # PEFT writes it into adapters, so not the view of the folder
    return encoder


def load_recogniser(recognition: SpeechRecognition, *, device: "torch.device", dtype: "torch.dtype") -> "Recogniser":
    """Load a Whisper as a speech recogniser; raises MertoolError."""
    from mertool.encoders import asr

    recogniser: Recogniser = _load(
        asr.load,
        recognition.checkpoint,
        "a speech recogniser",
        device=device,
        dtype=dtype,
        settings=recognition.settings,
    )
    return recogniser


def _load(load: Callable[..., Any], checkpoint: CheckpointRef, kind: str, **options: Any) -> Any:
    _quieten_transformers()
    with loadable_view(checkpoint.folder) as view:
        try:
            return load(view, **options)
        except Exception as error:  # a folder that is damaged, foreign or hostile makes transformers raise anything
            if type(error).__name__ == "OutOfMemoryError":  # the folder is not at fault
                raise
            reason = _describe(error).replace(str(view), str(checkpoint.folder))
            raise MertoolError(f"{checkpoint.folder} cannot be loaded as {kind}: {reason}") from error


def _describe(error: Exception) -> str:
    """Return the first line of a message, with the type of the error where the message alone would not tell."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    is_told = isinstance(error, MertoolError | OSError | ValueError | ImportError | RuntimeError) and first_line
    return first_line if is_told else f"{type(error).__name__} {first_line}".strip()


def _quieten_transformers() -> None:
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # otherwise it asks the hub to convert the weights
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")  # deprecations between it and PEFT
    warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")  # WavLM's call of torch

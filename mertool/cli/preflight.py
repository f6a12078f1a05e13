"""Checks of a command's options that need no torch, so that a slip is told before seconds of imports."""

import ctypes
import importlib.util
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mertool.encoders import check_encoder, check_recogniser
from mertool.encoders.recognition import check_chinese
from mertool.errors import MertoolError
from mertool.files import check_writable
from mertool.options import Options
from mertool.options.shared import parse_device


def check_before_torch(options: Options, output: Any) -> None:
    """Raise MertoolError for a device, an encoder or a speech recogniser that is not there, or an unwritable output.

    `output` is the path that the command writes, a file or the folder of a run; None if it writes none.
    """
    values = vars(options)
    if "device" in values:
        check_device(values["device"])
    if values.get("encoder"):
        check_encoder(values["encoder"], values.get("modality", "audio"))
    if values.get("asr"):
        check_recogniser(values["asr"])
        check_chinese(values["chinese"])
    if values.get("language"):
        from mertool.encoders.whisper_languages import parse_language

        parse_language(values["language"])
    if isinstance(output, Path) and not output.is_dir():
        check_writable(output)


def check_device(name: str) -> None:
    """Raise MertoolError for a device that this machine cannot have: no driver, or a build of torch without CUDA.

    Only torch knows whether a GPU of a number is there, so `devices.resolve_device` asks it later.
    """
    kind, _ = parse_device(name)
    if (kind == "cuda" and not may_have_cuda()) or (kind == "mps" and sys.platform != "darwin"):
        raise MertoolError(
            f"device '{name}' is not there (torch {version('torch')}): use --device auto or cpu; "
            "`mertool doctor` shows what this machine has"
        )


def may_have_cuda() -> bool:
    """Return False if torch could not use a GPU of NVIDIA or AMD here; torch is not imported."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    builds = re.findall(r"^(cuda|hip)\b.*= '", Path(spec.origin).with_name("version.py").read_text(), re.MULTILINE)
    if builds != ["cuda"]:
        return bool(builds)
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True

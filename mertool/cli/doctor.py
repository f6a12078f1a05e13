"""`mertool doctor`: the abilities of this machine, and missing packages."""

import importlib
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

from mertool.cli.arguments import Json, Quiet
from mertool.cli.console import echo, print_json
from mertool.cli.tables import table

EXAMPLE = "Example: mertool doctor"
REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "peft": "peft",
    "h5py": "h5py",
    "av": "av",
    "facenet-pytorch": "facenet_pytorch",
    "scikit-learn": "sklearn",
    "matplotlib": "matplotlib",
    "pebble": "pebble",
}


def doctor(quiet: Quiet = False, as_json: Json = False) -> None:
    """Show what this machine can run and what is missing. Exits with 1 if a required package is missing."""
    packages = {name: _version_or_fault(name, module) for name, module in REQUIRED.items()}
    missing = [name for name in REQUIRED if packages[name].startswith("missing")]
    facts: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine(), **packages}
    if "torch" not in missing:
        facts |= _torch_facts()
    facts["free disk here"] = f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB"
    if as_json:
        print_json({"facts": facts, "missing": missing})
    elif not quiet:
        table("This machine", ["what", "found"], [[name, fact] for name, fact in facts.items()])
        echo(
            f"missing: {', '.join(missing)}: pip install {' '.join(missing)}"
            if missing
            else "everything needed is here"
        )
    if missing:
        raise typer.Exit(1)


def _version_or_fault(name: str, module: str) -> str:
    """The version of a package that can be imported, or why it cannot."""
    try:
        importlib.import_module(module)
        return version(name)
    except PackageNotFoundError:
        return "found, version unknown"
    except Exception as error:  # a broken binary raises anything from ImportError to RuntimeError
        return f"missing ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def _torch_facts() -> dict[str, Any]:
    import torch
    from huggingface_hub import constants

    from mertool.devices import dtype_name, resolve_device, resolve_dtype
    from mertool.extraction.decoding import worker_count

    device = resolve_device("auto")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "device (auto)": str(device),
        "dtype (auto)": dtype_name(resolve_dtype("auto", device)),
        "GPUs": ", ".join(gpus) or "none",
        "decoder processes": worker_count(),
        "model cache": constants.HF_HUB_CACHE,
    }

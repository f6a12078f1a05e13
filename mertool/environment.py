"""Facts of the software and the machine that a run was made with, as run.json records them."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

PACKAGES = ("torch", "transformers", "peft", "numpy", "scikit-learn")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results may depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def machine_facts() -> dict[str, Any]:
    """Return the operating system, the CPU cores, the memory in GB and, if torch uses any, the names of the GPUs."""
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }
    # torch is not imported for this: a stage without it has not used a GPU.
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        facts["gpus"] = [cuda.get_device_name(number) for number in range(cuda.device_count())]
    return facts

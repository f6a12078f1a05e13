"""The folder is the registry: each file of a package is one choice, known without importing it."""

import importlib
from pathlib import Path
from types import ModuleType

from mertool.errors import check_choice

ROOT = Path(__file__).parent


def choices(package: str) -> list[str]:
    """The choices of `mertool.<package>`, one per file: `layer_adapters.py` is `layer-adapters`."""
    files = ROOT.joinpath(*package.split(".")).glob("*.py")
    return sorted(file.stem.replace("_", "-") for file in files if not file.stem.startswith("_"))


def check(package: str, what: str, name: str) -> None:
    """Raise if `name` is no choice of the package; imports nothing."""
    check_choice(what, name, choices(package))


def load(package: str, what: str, name: str) -> ModuleType:
    """Import the module of one choice; an unknown name is answered with the valid ones."""
    check(package, what, name)
    return importlib.import_module(f"mertool.{package}.{name.replace('-', '_')}")

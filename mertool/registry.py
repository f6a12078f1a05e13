"""The folder is the registry: each file of a package is one choice, known without importing it."""

import ast
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from mertool.errors import check_choice

ROOT = Path(__file__).parent


def choices(package: str) -> list[str]:
    """Return the choices of `mertool.<package>`, one per file: `layer_adapters.py` is `layer-adapters`."""
    files = _folder(package).glob("*.py")
    return sorted(file.stem.replace("_", "-") for file in files if not file.stem.startswith("_"))


def check(package: str, kind: str, name: str) -> None:
    """Raise MertoolError if `name` is no choice of the package, whose choices it calls `kind`. Imports nothing."""
    check_choice(kind, name, choices(package))


def load(package: str, kind: str, name: str) -> ModuleType:
    """Import the module of one choice; raises MertoolError with the valid names for an unknown one."""
    check(package, kind, name)
    return importlib.import_module(f"mertool.{package}.{name.replace('-', '_')}")


def literals(package: str, name: str) -> dict[str, Any]:
    """Return the constants at the top of a choice's file that are plain literals, without importing the file."""
    source = _folder(package).joinpath(f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    values: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                values[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue  # computed, so only an import gives its value
    return values


def _folder(package: str) -> Path:
    return ROOT.joinpath(*package.split("."))

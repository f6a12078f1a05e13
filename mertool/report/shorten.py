"""Paths as a report shows them: without the folder that all its files share, which says only whose machine it is."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def without_shared_folder(value: Any, files: Iterable[Path]) -> Any:
    """Return a JSON value in whose texts the folder that all `files` lie in is cut from the paths.

    >>> without_shared_folder(["/home/x/runs/a", "folds of /home/x/runs/b"], [Path("/home/x/runs"), Path("/home/x/c")])
    ['runs/a', 'folds of runs/b']
    """
    folders = [str(path.absolute().parent) for path in files]
    shared = os.path.commonpath(folders) if folders else ""
    return _cut(value, shared + os.sep) if len(shared) > 1 else value


def _cut(value: Any, prefix: str) -> Any:
    if isinstance(value, str):
        return value.replace(prefix, "")
    if isinstance(value, dict):
        return {name: _cut(item, prefix) for name, item in value.items()}
    return [_cut(item, prefix) for item in value] if isinstance(value, list) else value

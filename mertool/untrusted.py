"""Reading files that may come from strangers: regular files of a limited size, and JSON without surprises.

A pipe in the place of a file would block for ever, a file of zeros would fill the memory, and JSON may be nested so
deeply that it overflows the stack, or hold a key twice, of which each program takes another value.
"""

import json
import math
import stat
from pathlib import Path
from typing import Any, NoReturn

from mertool.errors import MertoolError

MAX_BYTES = 64 << 20
MAX_JSON_DEPTH = 64
MAX_NAME_BYTES = 120
MAX_JSON_INTEGER = 2**63


def read_bytes(path: Path, remedy: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file of at most `max_bytes`.

    Raises MertoolError for anything else; `remedy` says in it what to do next.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise MertoolError(f"{path} is not a regular file: {remedy}")
        if status.st_size > max_bytes:
            raise MertoolError(f"{path} has {status.st_size:,} bytes, at most {max_bytes:,} are read: {remedy}")
        return path.read_bytes()
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MertoolError(f"{path} cannot be read ({reason}): {remedy}") from error


def read_json(path: Path, remedy: str) -> Any:
    """Return the content of a JSON file; see `parse_json`. Raises MertoolError with `remedy` if it cannot be read."""
    content = read_bytes(path, remedy)
    try:
        return parse_json(content.decode("utf-8-sig"))
    except (ValueError, MemoryError) as error:
        raise MertoolError(f"{path} cannot be read ({error or 'not enough memory'}): {remedy}") from error


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object; raises MertoolError with `remedy` for anything else."""
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise MertoolError(f"{path} cannot be read (it holds no JSON object): {remedy}")
    return value


def parse_json(text: str) -> Any:
    """Parse JSON strictly.

    Raises ValueError for JSON that is not valid, is nested more than MAX_JSON_DEPTH levels deep, repeats a key, or has
    a number that is not finite or does not fit 64 bits.

    >>> parse_json('{"classes": ["happy", "sad"]}')
    {'classes': ['happy', 'sad']}
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_number,
            parse_int=_limited_integer,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(value)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in value if keys.count(key) > 1)
        raise ValueError(f"the key {repeated[:80]!r} is repeated")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite_number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _limited_integer(digits: str) -> int:
    # Compared by length first: converting a million digits takes minutes.
    if len(digits) > 20 or abs(int(digits)) > MAX_JSON_INTEGER:
        raise ValueError(f"the integer {digits[:20]}... does not fit 64 bits")
    return int(digits)


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} levels deep")
        containers = [
            item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)
        ]
        level = [child for container in containers for child in container]


def is_plain_name(name: Any) -> bool:
    """Return True for the name of a file or folder that is only a name: without separators, not hidden, printable.

    >>> [is_plain_name(name) for name in ("audio-large", "音频", "../x", ".ssh", "a/b", "")]
    [True, True, False, False, False, False]
    """
    if not isinstance(name, str) or not name or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        return False
    return name[0] not in ". " and name[-1] not in ". " and not set(name) & set('/\\:*?"<>|')

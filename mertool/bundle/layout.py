"""What stands where in a bundle, and the digests that guard it."""

import hashlib
from pathlib import Path
from typing import Any

from mertool.encoders import CONFIGURATION, SAFE_WEIGHTS
from mertool.files import digest_json

COPY_BYTES = 200_000_000  # local encoders up to this size are copied into the bundle
# What the score of a clip depends on. `origin` of a part is left out: paths may change, digests may not.
SEALED = ("classes", "parts", "members", "correction", "files")


def part_folder(number: int) -> str:
    """Where what belongs to a part lies within the bundle."""
    return f"part{number}"


def encoder_folder(digest: str) -> str:
    """Where an encoder or a speech recogniser of this digest lies within the bundle."""
    return f"encoders/{digest[:16]}"


def encoder_files(folder: Path) -> list[Path]:
    """The files of a model folder that make it up, if its weights are safetensors; else none."""
    weights = [path for pattern in SAFE_WEIGHTS for path in folder.glob(pattern)]
    return sorted([*weights, *(path for pattern in CONFIGURATION for path in folder.glob(pattern))] if weights else [])


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_digest(info: dict[str, Any]) -> str:
    """Digest of what stands in run.json and changes a prediction."""
    parts = [{name: value for name, value in part.items() if name != "origin"} for part in info["parts"]]
    return digest_json({**{name: info[name] for name in SEALED}, "parts": parts})

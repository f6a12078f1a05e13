"""Paths inside a bundle, and the digests that detect changes of it."""

import hashlib
from pathlib import Path
from typing import Any

from mertool.encoders.checkpoint_files import checkpoint_files
from mertool.errors import MertoolError
from mertool.files import digest_json

COPY_BYTES = 200_000_000  # local encoders up to this size are copied into the bundle
# Entries of run.json that change a prediction. `target` is missing in bundles of classes that are older than it, and
# `origin` of features is left out: paths may change, digests may not.
SEALED = ("classes", "class_counts", "parts", "members", "correction", "files")
OPTIONAL_SEALED = ("target",)


def trained_folder(number: int) -> str:
    """Return the folder of the adapter and the aligner of one feature spec, within the bundle."""
    return f"part{number}"


def encoder_folder(digest: str) -> str:
    """Return the folder of an encoder or a speech recogniser of this digest, within the bundle."""
    return f"encoders/{digest[:16]}"


def encoder_files(folder: Path) -> list[Path]:
    """Return the files that make up a model folder with safetensors weights; none for other weights."""
    try:
        files = checkpoint_files(folder)
    except MertoolError:  # the encoder is named by its digest, and whoever needs it is told what is wrong
        return []
    return [] if any(file.suffix == ".bin" for file in files) else sorted(files)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_digest(info: dict[str, Any]) -> str:
    """Return the digest of everything in run.json that changes a prediction."""
    specs = [{name: value for name, value in spec.items() if name != "origin"} for spec in info["parts"]]
    optional = {name: info[name] for name in OPTIONAL_SEALED if name in info}
    return digest_json({**{name: info[name] for name in SEALED}, **optional, "parts": specs})

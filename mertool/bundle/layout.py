"""What stands where in a bundle, and the digests that guard it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mertool.encoders import CONFIGURATION, SAFE_WEIGHTS
from mertool.files import digest_json

COPY_BYTES = 200_000_000  # local encoders up to this size are copied into the bundle
# What the score of a clip depends on. `origin` of a part is left out: paths may change, digests may not.
SEALED = ("classes", "parts", "members", "correction", "files")


@dataclass(frozen=True)
class Members:
    """Heads of one form, trained on folds x seeds: `state` has all tensors stacked, members on axis 0.

    `head` is a file of mertool/fusion; `fold` and `seed` say of each member which fold it did not see and its seed.
    """

    head: str
    width: int
    dropout: float
    state: dict[str, torch.Tensor]
    fold: tuple[int, ...]
    seed: tuple[int, ...]

    def __post_init__(self) -> None:
        counts = {len(self.fold), len(self.seed), *(len(value) for value in self.state.values())}
        if len(counts) != 1 or not self.fold:
            raise ValueError(f"members of uneven number: folds, seeds and tensors have {sorted(counts)}")


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


def seal_of(info: dict[str, Any]) -> str:
    """Digest of what stands in run.json and changes a prediction."""
    parts = [{name: value for name, value in part.items() if name != "origin"} for part in info["parts"]]
    return digest_json({**{name: info[name] for name in SEALED}, "parts": parts})

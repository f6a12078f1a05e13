"""Feature folders of MERTools: `features/NAME-UTT/CLIP.npy` of (D,), `features/NAME-FRA/CLIP.npy` of (T, D).

A frame folder may hold a folder of npy files per clip instead, one for each frame. A clip without the modality is
zeros, or has no frames. Source: `toolkit/utils/read_data.py` and `feature_extraction` of
https://github.com/zeroQiaoba/MERTools.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mertool.errors import ClipError, MertoolError
from mertool.files import explain_write_errors
from mertool.interop.features import FeatureSource
from mertool.manifest import clip_id_faults

TITLE = "a folder features/NAME-UTT or -FRA of MERTools"
POOLED, FRAMES = "UTT", "FRA"
LEVEL = re.compile(rf"[-_]({POOLED}|{FRAMES})$")


def recognises_features(path: Path) -> bool:
    """Return whether a path is that of a folder with npy files, or with folders of them."""
    return path.is_dir() and any(True for _ in _entries(path))


def read_features(path: Path, modality: str) -> FeatureSource:
    """Return the features of a folder. Clips with another number of channels than most of them are faulty.

    Raises MertoolError if no file can be read.
    """
    entries = dict(_entries(path))
    if faults := [fault for clip in entries for fault in clip_id_faults(clip)]:
        raise MertoolError(f"{path}: {faults[0]}: rename the file")
    shapes = [shape for files in entries.values() if (shape := _shape(files)) and shape[-1]]
    if not shapes:
        raise MertoolError(f"{path} holds no npy file with features: give {TITLE}")
    channels = Counter(shape[-1] for shape in shapes).most_common(1)[0][0]
    level = LEVEL.search(path.name)
    pooled = level[1] == POOLED if level else all(len(shape) == 1 for shape in shapes)

    def clips() -> Iterator[tuple[str, np.ndarray | ClipError]]:
        for clip, files in entries.items():
            try:
                yield clip, _read_clip(files, channels, pooled=pooled)
            except (OSError, ValueError, EOFError, MemoryError) as error:
                yield (
                    clip,
                    ClipError("unreadable", f"{files[0]}: {str(error).splitlines()[0] if str(error) else error!r}"),
                )

    return FeatureSource(
        name=path.name, toolkit="mertools", modality=modality, pooled=pooled, channels=channels, clips=clips
    )


def write_clip(folder: Path, clip: str, values: np.ndarray) -> None:
    """Write the features of a clip, (D,) or (T, D), in the number format of MERTools, float32."""
    path = folder / f"{clip}.npy"
    with explain_write_errors(path):
        np.save(path, values.astype(np.float32))


def folder_name(name: str, *, pooled: bool) -> str:
    """Return the name of a feature folder.

    >>> folder_name("hubert", pooled=True)
    'hubert-UTT'
    """
    return f"{name}-{POOLED if pooled else FRAMES}"


def _entries(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yield the files of each clip, sorted: one, or one per frame."""
    for entry in sorted(folder.iterdir()):
        if entry.suffix == ".npy" and entry.is_file():
            yield entry.stem, [entry]
        elif entry.is_dir() and not entry.name.startswith(".") and (files := sorted(entry.glob("*.npy"))):
            yield entry.name, files


def _shape(files: list[Path]) -> tuple[int, ...] | None:
    """Return the shape in the first file without axes of length 1; None for a file that cannot be read."""
    try:
        return tuple(np.squeeze(np.load(files[0], mmap_mode="r", allow_pickle=False)).shape)
    except (OSError, ValueError, EOFError):
        return None


def _read_clip(files: list[Path], channels: int, *, pooled: bool) -> np.ndarray:
    """Return (D,) or (T, D); raise ValueError for values of another shape."""
    rows = [np.squeeze(np.load(file, allow_pickle=False)) for file in files]
    values = rows[0] if len(rows) == 1 else np.stack(rows)
    if values.size == 0:
        return np.zeros((0, channels), np.float32)
    if not np.issubdtype(values.dtype, np.number) or values.ndim not in (1, 2):
        raise ValueError(f"an array of shape {values.shape} and type {values.dtype} is no feature")
    values = np.atleast_2d(values)
    if values.shape[1] != channels:
        raise ValueError(f"{values.shape[1]} channels, other clips have {channels}")
    if not pooled:
        return values.astype(np.float32)
    if len(values) > 1:
        raise ValueError(f"{len(values)} rows in a folder of one vector per clip")
    return values[0].astype(np.float32)

"""Face crops of MERTools: `openface_face/CLIP/CLIP.npy` of (T, 112, 112, 3) uint8, in the order blue, green, red.

T may be 0, and the file of a clip may be missing. Source: `feature_extraction/visual/extract_openface.py` of
https://github.com/zeroQiaoba/MERTools.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mertool.errors import ClipError, MertoolError
from mertool.files import explain_write_errors, make_folder
from mertool.interop.features import FeatureSource
from mertool.manifest import clip_id_faults

TITLE = "a folder openface_face of MERTools"
PRIORITY = 1
MODALITY = "faces"
FOLDER = "openface_face"
SIDE = 112


def recognises_features(path: Path) -> bool:
    """Return whether a folder holds `CLIP/CLIP.npy` with face crops in its first folder that has such a file."""
    return path.is_dir() and (file := next(_files(path), None)) is not None and len(_shape(file)) == 4


def read_features(path: Path, modality: str) -> FeatureSource:
    """Return the face crops of all clips, red first. Raises MertoolError for another modality than faces."""
    if modality != MODALITY:
        raise MertoolError(f"{path} holds face crops: give --modality {MODALITY}")
    files = list(_files(path))
    if faults := [fault for file in files for fault in clip_id_faults(file.stem)]:
        raise MertoolError(f"{path}: {faults[0]}: rename the file")
    side = next((shape[1] for file in files if (shape := _shape(file)) and len(shape) == 4 and shape[0]), SIDE)

    def clips() -> Iterator[tuple[str, np.ndarray | ClipError]]:
        for file in files:
            try:
                yield file.stem, _read_clip(file, side)
            except (OSError, ValueError, EOFError, MemoryError) as error:
                yield file.stem, ClipError("unreadable", f"{file}: {str(error) or repr(error)}")

    return FeatureSource(name=path.name, toolkit="mertools", modality=MODALITY, pooled=False, channels=3, clips=clips)


def write_clip(folder: Path, clip: str, crops: np.ndarray) -> None:
    """Write the crops (T, H, W, 3) of a clip, blue first."""
    make_folder(folder / clip)
    with explain_write_errors(folder / clip):
        np.save(folder / clip / f"{clip}.npy", np.ascontiguousarray(crops[..., ::-1]))


def _files(folder: Path) -> Iterator[Path]:
    """Yield CLIP/CLIP.npy of every clip that has one."""
    return (file for entry in sorted(folder.iterdir()) if (file := entry / f"{entry.name}.npy").is_file())


def _shape(file: Path) -> tuple[int, ...]:
    try:
        return tuple(np.load(file, mmap_mode="r", allow_pickle=False).shape)
    except ValueError:  # a file of no bytes cannot be mapped; it may be an array of no frames
        return tuple(_load(file).shape)
    except (OSError, EOFError):
        return ()


def _load(file: Path) -> np.ndarray:
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.zeros(())


def _read_clip(file: Path, side: int) -> np.ndarray:
    crops = np.load(file, allow_pickle=False)
    if crops.size == 0:
        return np.zeros((0, side, side, 3), np.uint8)
    if crops.dtype != np.uint8 or crops.shape[1:] != (side, side, 3):
        raise ValueError(f"an array of shape {crops.shape} and type {crops.dtype}, not (T, {side}, {side}, 3) of uint8")
    return np.ascontiguousarray(crops[..., ::-1])

"""Labels and transcripts in the forms of MERTools (MER2023 to MER2026), and in any CSV of the same shape.

`label-6way.npz` holds one pickled dict per corpus. While it is read, only the array constructors of NumPy are allowed,
so that a manipulated file cannot run code.
"""

import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import MertoolError, combine_errors, suggest
from mertool.interop.tables import ClipTable, check_exists
from mertool.manifest import SPLITS

LABEL_COLUMNS = ("label", "discrete", "emotion", "emo")
TEXT_COLUMNS = ("text", "transcript", "chinese", "english", "sentence")
TRAIN_CORPORA = ("train_corpus", "whole_corpus")
ALLOWED_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
# Raised by zipfile, zlib, the header of NumPy and the unpickler for a damaged file, or one of another kind.
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)


def read_labels(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return labels and splits by clip id, from the npz of MERTools or from a CSV with a name and a label column.

    Of an npz only the training corpus is read, because its test clips carry the placeholder `neutral`. Corpora that
    number their classes (IEMOCAP, MELD) give the numbers as class names. Raises MertoolError for a file that cannot be
    read, a clip with two labels, or an unknown split.
    """
    check_exists(path, "labels")
    if path.suffix == ".npz":
        return _read_npz(path), {}
    table = ClipTable.read(path, "labels")
    labels = _column_by_clip(table, table.find_column(LABEL_COLUMNS, "label"))
    splits = _column_by_clip(table, "split") if "split" in table.columns else {}
    unknown = sorted(set(splits.values()) - set(SPLITS))
    if unknown:
        raise MertoolError(
            f"{path}: unknown split '{unknown[0]}': {suggest(unknown[0], SPLITS)}valid: {', '.join(SPLITS)}"
        )
    return labels, splits


def read_transcripts(path: Path) -> dict[str, str]:
    """Return transcripts by clip id from a CSV (`name,chinese`, `clip,text`, ...), without empty ones."""
    table = ClipTable.read(path, "transcripts")
    return _column_by_clip(table, table.find_column(TEXT_COLUMNS, "text"))


def _column_by_clip(table: ClipTable, column: str) -> dict[str, str]:
    """Return one column by clip id, without empty cells; a clip with two different values is a fault."""
    value_of: dict[str, str] = {}
    faults = []
    for clip, row in zip(table.clip_ids(), table.rows, strict=True):
        value = (row[column] or "").strip()
        if value and value_of.setdefault(clip, value) != value:
            faults.append(f"'{clip}' has the {column} '{value_of[clip]}' and '{value}'")
    if faults:
        raise combine_errors(str(table.path), faults)
    return value_of


def _read_npz(path: Path) -> dict[str, str]:
    labels: dict[str, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            corpora = [corpus for corpus in TRAIN_CORPORA if f"{corpus}.npy" in archive.namelist()]
            for corpus in corpora:
                for clip, entry in _unpickle_dict(archive.read(f"{corpus}.npy")).items():
                    labels[str(clip)] = str(entry["emo"])
    except UNREADABLE as error:
        raise MertoolError(f"{path} is not a label file of MERTools ({error})") from error
    if not corpora:
        raise MertoolError(f"{path} holds none of {', '.join(TRAIN_CORPORA)}")
    return labels


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which labels do not need: refused")
        return super().find_class(module, name)


def _unpickle_dict(data: bytes) -> dict[str, dict[str, Any]]:
    """Return the dict in a 0-d object array in npy form; `numpy.load` would run any code in it."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(stream)
    if shape != () or not dtype.hasobject:
        raise TypeError(f"an array of shape {shape} and type {dtype} where a dict was expected")
    array = _RestrictedUnpickler(stream).load()
    return array.item() if isinstance(array, np.ndarray) else array

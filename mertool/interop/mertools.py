"""Labels, transcripts and submissions in MERTools' forms (MER2023 to MER2026), and in any CSV of the same shape.

`label-6way.npz` holds one pickled dict per corpus. Only numpy's own array constructors are allowed while
it is read, so a prepared file cannot run code.
"""

import csv
import io
import pickle
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import MertoolError, combine_errors, suggest
from mertool.files import write_atomic
from mertool.manifest import EMOTIONS, SPLITS

NAME_COLUMNS = ("clip", "name", "file", "filename")
LABEL_COLUMNS = ("label", "discrete", "emotion", "emo")
TEXT_COLUMNS = ("text", "transcript", "chinese", "english", "sentence")
MOST_NAMED = 10
TRAIN_CORPORA = ("train_corpus", "whole_corpus")
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def read_labels(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Labels and splits by clip name, from MERTools' npz or from a CSV with a name and a label column.

    Of an npz only the training corpus is read: test clips carry the placeholder `neutral` there. Corpora
    that number their classes (IEMOCAP, MELD) give the numbers as class names.
    """
    _check_exists(path, "labels")
    if path.suffix == ".npz":
        return _read_npz(path), {}
    rows, header = _read_rows(path)
    label = _column(path, header, LABEL_COLUMNS, "label")
    name = _column(path, header, NAME_COLUMNS, "clip name")
    labels = _by_clip(path, rows, name, label)
    splits = _by_clip(path, rows, name, "split") if "split" in header else {}
    wrong = sorted(set(splits.values()) - set(SPLITS))
    if wrong:
        raise MertoolError(f"{path}: unknown split '{wrong[0]}': {suggest(wrong[0], SPLITS)}valid: {', '.join(SPLITS)}")
    return labels, splits


def read_transcripts(path: Path) -> dict[str, str]:
    """Transcripts by clip name from a CSV (`name,chinese`, `clip,text`, ...); empty ones are left out."""
    _check_exists(path, "transcripts")
    rows, header = _read_rows(path)
    text = _column(path, header, TEXT_COLUMNS, "text")
    name = _column(path, header, NAME_COLUMNS, "clip name")
    return _by_clip(path, rows, name, text)


def read_candidates(path: Path) -> list[str]:
    """Names of the clips that a challenge wants labels of, in the list's order; one that stands twice is an error."""
    _check_exists(path, "candidates")
    rows, header = _read_rows(path)
    column = _column(path, header, NAME_COLUMNS, "clip name")
    names = [name for row in rows if (name := _stem(row[column]))]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise MertoolError(f"{path}: names that stand there more than once: {_named(repeated)}; leave each in once")
    if not names:
        raise MertoolError(f"{path} names no clip: give the challenge's list of candidates")
    return names


def check_candidates(path: Path, names: list[str], clips: list[str], source: Path, classes: tuple[str, ...]) -> None:
    """Raise one error for all that keeps labels of `clips` from being a submission for the candidates `names`."""
    faults = []
    if wrong := [name for name in classes if name not in EMOTIONS]:
        faults.append(f"the bundle's classes {', '.join(wrong)} are none of the challenge's ({', '.join(EMOTIONS)})")
    if missing := sorted(set(names) - set(clips)):
        faults.append(f"candidates that are not in {source}: {_named(missing)}")
    if extra := sorted(set(clips) - set(names)):
        faults.append(f"clips of {source} that are no candidates: {_named(extra)}, give a manifest without them")
    if faults:
        raise combine_errors(f"no submission for {path}", faults)


def write_submission(path: Path, names: list[str], labels: dict[str, str], reasons: Path) -> None:
    """Write `name,discrete` for exactly the candidates, in their order; `reasons` tells why clips have no label."""
    if missing := [name for name in names if name not in labels]:
        path.unlink(missing_ok=True)
        raise MertoolError(
            f"no submission: candidates without a prediction: {_named(missing)}; see {reasons}, mend the files and run "
            "the same command again"
        )
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["name", "discrete"])
    writer.writerows([name, labels[name]] for name in names)
    write_atomic(path, buffer.getvalue())


def _named(names: list[str]) -> str:
    """`2 (a, b)`, of many the first."""
    shown = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
    return f"{len(names)} ({shown})"


def _by_clip(path: Path, rows: list[dict[str, str]], name: str, column: str) -> dict[str, str]:
    """One column by clip name, without empty cells; a clip with two different values is a fault."""
    found: dict[str, str] = {}
    faults = []
    for row in rows:
        clip, value = _stem(row[name]), (row[column] or "").strip()
        if value and found.setdefault(clip, value) != value:
            faults.append(f"'{clip}' stands there with {column} '{found[clip]}' and '{value}'")
    if faults:
        raise combine_errors(str(path), faults)
    return found


def _read_npz(path: Path) -> dict[str, str]:
    labels: dict[str, str] = {}
    found = False
    try:
        with zipfile.ZipFile(path) as archive:
            for corpus in TRAIN_CORPORA:
                if f"{corpus}.npy" in archive.namelist():
                    found = True
                    for clip, entry in _unpickle(archive.read(f"{corpus}.npy")).items():
                        labels[str(clip)] = str(entry["emo"])
    except UNREADABLE as error:
        raise MertoolError(f"{path} is not a label file of MERTools ({error})") from error
    if not found:
        raise MertoolError(f"{path} holds none of {', '.join(TRAIN_CORPORA)}")
    return labels


# What zipfile, zlib, NumPy's header and the unpickler raise on a damaged or foreign file.
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


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which labels do not need: refused")
        return super().find_class(module, name)


def _unpickle(data: bytes) -> dict[str, dict[str, Any]]:
    """The dict inside a 0-d object array in npy form."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(stream)
    if shape != () or not dtype.hasobject:
        raise TypeError(f"an array of shape {shape} and type {dtype} where a dict was expected")
    array = _Unpickler(stream).load()
    return array.item() if isinstance(array, np.ndarray) else array


def _read_rows(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            return [row for row in reader if any(row.values())], list(reader.fieldnames)
    except (UnicodeDecodeError, csv.Error) as error:
        raise MertoolError(f"{path} is not a CSV file in UTF-8 ({error})") from error


def _column(path: Path, header: list[str], valid: tuple[str, ...], what: str) -> str:
    for name in valid:
        if name in header:
            return name
    raise MertoolError(f"{path} has no {what} column: it has {', '.join(header) or 'none'}; valid: {', '.join(valid)}")


def _stem(name: str | None) -> str:
    """`clip.mp4` names the same clip as `clip`; a dot inside a name stays."""
    known = (".mp4", ".avi", ".wav", ".flac", ".mp3", ".mov", ".mkv", ".m4a", ".webm", ".mpg")
    cleaned = (name or "").strip()
    return cleaned[: -len(Path(cleaned).suffix)] if cleaned.lower().endswith(known) else cleaned


def _check_exists(path: Path, what: str) -> None:
    if not path.is_file():
        raise MertoolError(f"{what} file {path} does not exist")

"""Labels of MERTools (MER2023 to MER2026): `label-6way.npz` holds one pickled dict per corpus."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import MertoolError
from mertool.interop.annotations import Annotation, Annotations
from mertool.interop.pickles import UNREADABLE, load_pickle
from mertool.manifest import SPLITS

TITLE = "label-6way.npz of MERTools"
TRAIN_CORPORA = ("train_corpus", "whole_corpus")
CORPUS_SUFFIX = "_corpus"
PLACEHOLDER = "neutral"
MAX_CORPUS_BYTES = 256 << 20


def recognises(path: Path) -> bool:
    """Return whether a path is that of an npz file."""
    return path.suffix.lower() == ".npz"


def read_labels(path: Path) -> Annotations:
    """Return the labels and splits of an npz of MERTools: those of its training, validation and test corpora.

    Test clips whose labels are not public have the placeholder `neutral`; a test or validation corpus that has nothing
    else is left out. Corpora that number their classes (IEMOCAP, MELD) give the numbers as labels. Raises MertoolError
    for a file that cannot be read, or whose `emo` is the same everywhere (MOSI, MOSEI: the target is `val`).
    """
    try:
        corpora = _read_corpora(path)
    except UNREADABLE as error:
        raise MertoolError(f"{path} is not a label file of MERTools ({error})") from error
    rows: list[Annotation] = []
    notes = []
    for corpus, labels in corpora.items():
        split = split_of_corpus(corpus)
        constant = next(iter(labels.values()), "") if len(labels) > 1 and len(set(labels.values())) == 1 else None
        if split == "train" and constant is not None:
            raise MertoolError(
                f"{path}: all {len(labels)} clips of {corpus} have the emo '{constant}', which is no label: "
                "in corpora as MOSI, MOSEI and SIMS the target is val, a number. Give a CSV name,label with classes"
            )
        if split != "train" and set(labels.values()) <= {PLACEHOLDER}:
            notes.append(f"{corpus} of {path} is left out: all its labels are the placeholder '{PLACEHOLDER}'")
            continue
        rows += [Annotation(name=clip, label=label, split=split) for clip, label in labels.items()]
    return Annotations(path=path, rows=tuple(rows), notes=tuple(notes))


def split_of_corpus(corpus: str) -> str:
    """Return the split of a corpus by its name: `train_corpus`, `whole_corpus`, `val_corpus`, `test1_corpus`."""
    kind = corpus.removesuffix(CORPUS_SUFFIX).rstrip("0123456789")
    return {"whole": "train", "val": "dev", "valid": "dev"}.get(kind, kind)


def _read_corpora(path: Path) -> dict[str, dict[str, str]]:
    """Return the label by clip of each corpus."""
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        corpora = [name for name in names if name.endswith(CORPUS_SUFFIX) and split_of_corpus(name) in SPLITS]
        if not any(split_of_corpus(corpus) == "train" for corpus in corpora):
            raise ValueError(f"it holds none of {', '.join(TRAIN_CORPORA)}")
        return {
            corpus: {
                str(clip): _label_of(entry) for clip, entry in _unpickle_dict(_read_member(archive, corpus)).items()
            }
            for corpus in corpora
        }


def _read_member(archive: zipfile.ZipFile, corpus: str) -> bytes:
    """Return the content of an array; raise ValueError if it unpacks to more than labels ever need."""
    size = archive.getinfo(f"{corpus}.npy").file_size
    if size > MAX_CORPUS_BYTES:
        raise ValueError(f"{corpus} unpacks to {size:,} bytes, at most {MAX_CORPUS_BYTES:,} are read")
    return archive.read(f"{corpus}.npy")


def _label_of(entry: dict[str, Any]) -> str:
    label = entry["emo"]
    # The text of a container that holds itself many times over would never end.
    if not isinstance(label, str | int | float | np.generic):
        raise TypeError(f"an emo of type {type(label).__name__}")
    return str(label)


def _unpickle_dict(data: bytes) -> dict[str, dict[str, Any]]:
    """Return the dict in a 0-d object array in npy form; `numpy.load` would run any code in it."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(stream)
    if shape != () or not dtype.hasobject:
        raise TypeError(f"an array of shape {shape} and type {dtype} where a dict was expected")
    array = load_pickle(stream, "labels")
    return array.item() if isinstance(array, np.ndarray) else array

"""Labels of EmoBox: `data/CORPUS/CORPUS.jsonl`, and folders `fold_1` with a file for each split."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mertool.errors import MertoolError
from mertool.interop.annotations import Annotation, Annotations
from mertool.interop.columns import SPLIT_ALIASES
from mertool.manifest import SPLITS
from mertool.tables import read_text
from mertool.untrusted import parse_json

TITLE = "a .jsonl or fold folder of EmoBox"
SUFFIXES = (".jsonl", ".json")
LABEL_MAP = "label_map.json"
VALID = (
    "a file as CORPUS.jsonl, or a folder as fold_1 that holds CORPUS_train_fold_1.jsonl and CORPUS_test_fold_1.jsonl"
)
# `iemocap_test_fold_1.jsonl` is the test split.
SPLIT_IN_NAME = re.compile(r"_(train|valid|val|dev|test\d?)_fold_\w+$")


def recognises(path: Path) -> bool:
    """Return whether a path is that of a JSON file or a folder."""
    return path.is_dir() or path.suffix.lower() in SUFFIXES


def read_labels(path: Path) -> Annotations:
    """Return the labels of a file, or the labels and splits of a fold's folder, or the labels of a corpus' folder.

    Clips are named by their `wav`, whose folders need not be those of this machine. Labels are mapped by
    `label_map.json` beside the file or above it, as `exc` to `Happy` in IEMOCAP. Raises MertoolError for a file of
    another form.
    """
    files = list(_list_files(path))
    label_map, map_file = _read_label_map(path)
    rows: dict[tuple[object, ...], Annotation] = {}
    for file in files:
        match = SPLIT_IN_NAME.search(file.stem)
        split = SPLIT_ALIASES.get(match[1], match[1]) if match else None
        for key, entry in _read_entries(file):
            try:
                row = _read_entry(key, entry, label_map=label_map, split=split)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise MertoolError(f"{file}: clip '{key}' has no valid {error}: give {VALID} of EmoBox") from error
            rows.setdefault((row.name, row.start, row.end), row)
    notes = (f"labels of {path} are mapped by {map_file}",) if map_file else ()
    return Annotations(path=path, rows=tuple(rows.values()), notes=notes)


def _list_files(path: Path) -> Iterator[Path]:
    """Return the files to read: of a folder those of its splits, else the one that is named as the corpus."""
    if not path.is_dir():
        yield path
        return
    for suffix in SUFFIXES:  # a folder has the same content in both forms
        files = sorted(file for file in path.glob(f"*{suffix}") if file.name != LABEL_MAP)
        if splits := [file for file in files if SPLIT_IN_NAME.search(file.stem)]:
            # MER2023 has test1, test2 and test3 beside a file test that joins them.
            yield from splits
            return
        corpus_files = [file for file in files if file.stem == path.name] or files
        if len(corpus_files) == 1:
            yield from corpus_files
            return
    raise MertoolError(f"{path} holds no labels of EmoBox: give {VALID}")


def _read_label_map(path: Path) -> tuple[dict[str, str], Path | None]:
    """Return the class by label, and the file that says so; both are empty if there is none."""
    folder = path if path.is_dir() else path.parent
    file = next(filter(Path.is_file, (folder / LABEL_MAP, folder.parent / LABEL_MAP)), None)
    if file is None:
        return {}, None
    content = _parse(file, read_text(file, "label map")[0])
    if not isinstance(content, dict):
        raise MertoolError(f"{file} is not a label map of EmoBox: give an object of labels and classes")
    return {str(label): str(name) for label, name in content.items()}, file


def _read_entries(file: Path) -> Iterable[tuple[str, Any]]:
    """Return the entries by their key: lines, one object by key, or a list of objects."""
    text, _ = read_text(file, "labels")
    if file.suffix.lower() == ".jsonl":
        content: Any = [_parse(file, line) for line in text.splitlines() if line.strip()]
    else:
        content = _parse(file, text)
    if isinstance(content, dict):
        return list(content.items())
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise MertoolError(f"{file} holds no labels of EmoBox: give {VALID}")
    return [(str(entry.get("key", "")), entry) for entry in content]


def _parse(file: Path, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise MertoolError(f"{file} is not JSON ({error}): give {VALID} of EmoBox") from error


def _read_entry(key: str, entry: Any, *, label_map: dict[str, str], split: str | None) -> Annotation:
    label = str(entry["emo"])
    start, end = (None if entry.get(name) is None else float(entry[name]) for name in ("start_time", "end_time"))
    return Annotation(
        name=str(entry.get("wav") or entry.get("audio") or key),
        # A part of a file has no name but its key; a whole file is named by itself.
        clip=key if start is not None or end is not None else None,
        key=key,
        label=label_map.get(label, label),
        speaker=str(entry["spk"]) if entry.get("spk") else None,
        split=split if split in SPLITS else None,
        start=start or None,
        end=end,
    )

"""Folds from a file (`--folds FILE`): a CSV of mertool, a run of mertool, or EmoBox's CSV or folder of a corpus."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from mertool.errors import MertoolError, combine_errors
from mertool.files import digest_json, write_atomic
from mertool.interop.formats import emobox
from mertool.learning.folds import Folds, make_folds, speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.options.shared import MAX_FOLDS
from mertool.tables import normalize
from mertool.untrusted import read_bytes, read_json_object

VALID_FORMS = (
    "a CSV with the columns clip,fold; the folder or run.json of a run; EmoBox's CSV with fold,split,file, or its "
    "folder of a corpus with fold_1, fold_2, ..."
)
GIVE = f"give {VALID_FORMS}"
FOLD_FOLDER = "fold_"
SHOWN = 40  # characters of a name in a message


def get_folds(folds: int | Path, examples: LabelledClips, seed: int, *, complete: bool = True) -> Folds:
    """Make that number of folds, or read them from a file, as `--folds` says; for `complete` see `read_folds`."""
    return (
        read_folds(folds, examples, complete=complete) if isinstance(folds, Path) else make_folds(examples, folds, seed)
    )


def folds_key(folds: int | Path | None) -> int | str | None:
    """Return what `--folds` adds to the key of a run: the number, or the digest of the file."""
    if not isinstance(folds, Path):
        return folds
    files = [file for folder in _emobox_folders(folds) for file in sorted(folder.iterdir()) if file.is_file()]
    contents = [read_bytes(file, GIVE).hex() for file in files or [_existing_file(folds)]]
    return digest_json(contents if files else contents[0])


def folds_option(folds: int | Path | None) -> int | str | None:
    """Return what the record of a run says of `--folds`: the number, or `file`, whose path may change."""
    return "file" if isinstance(folds, Path) else folds


def write_folds(path: Path, examples: LabelledClips, folds: Folds) -> None:
    """Write a CSV `clip,fold`, which `read_folds` reads."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["clip", "fold"])
    writer.writerows(folds.to_json(examples).items())
    write_atomic(path, buffer.getvalue())


def read_folds(path: Path, examples: LabelledClips, *, complete: bool = True) -> Folds:
    """Return the folds that a file assigns to `examples`, numbered from 0 in the order of their names.

    `path` is a CSV with the columns `clip,fold`, a run of mertool (its folder or run.json), a CSV of EmoBox
    (`fold,split,file`) or its folder of a corpus; EmoBox's test splits must be a partition of the files. Other clips of
    the file are ignored; a clip without a fold raises MertoolError. But a run has no fold of clips that lack its
    modality: they get the fold of their speaker, as long as most clips have one. With `complete=False` this holds for
    every kind of file.
    """
    folders = _emobox_folders(path)
    file = path if folders else _existing_file(path)
    is_run = file.suffix == ".json"
    if folders:
        name_of_clip = _match_files(path, examples.clips, _parse_emobox_rows(path, _read_emobox_folders(folders)))
    elif is_run:
        name_of_clip = {clip: str(fold) for clip, fold in read_run_folds(file).items()}
    else:
        name_of_clip = _read_csv(file, examples.clips)
    # Fewer than half in common: it is a run or a file of another corpus, and the error below says so.
    if (is_run or not complete) and 2 * sum(clip in name_of_clip for clip in examples.clips) > len(examples):
        name_of_clip = assign_missing_folds(name_of_clip, examples)
    missing = [clip for clip in examples.clips if clip not in name_of_clip]
    if missing:
        raise MertoolError(
            f"{file}: {len(missing)} of {len(examples)} labelled clips have no fold (first: '{missing[0]}'): add them, "
            "or let mertool make folds with --folds NUMBER"
        )
    names = sorted({name_of_clip[clip] for clip in examples.clips}, key=_natural_order)
    fold_of = np.array([names.index(name_of_clip[clip]) for clip in examples.clips], np.int64)
    if len(names) > MAX_FOLDS:
        raise MertoolError(f"{file} has {len(names):,} folds: at most {MAX_FOLDS} are trained, merge some")
    if len(names) < 2:
        raise MertoolError(f"{file} puts all {len(examples)} labelled clips into fold {names[0]}: two are needed")
    for fold, name in enumerate(names):
        if len(np.unique(examples.labels[fold_of != fold])) < 2:
            raise MertoolError(f"{file}: without fold {name} only one class is left to train on: merge folds")
    return Folds(fold_of, len(names), f"{len(names)} folds of {path.name}, {_describe_speakers(examples, fold_of)}")


def assign_missing_folds(name_of_clip: dict[str, str], examples: LabelledClips) -> dict[str, str]:
    """Return a fold for every clip: its own, else that of its speaker's other clips, else all folds in turn."""
    names = sorted(set(name_of_clip.values()), key=_natural_order)
    pairs = list(zip(examples.clips, examples.speakers, strict=True))
    name_of_speaker = {speaker: name_of_clip[clip] for clip, speaker in pairs if clip in name_of_clip and speaker}
    return {
        clip: name_of_clip.get(clip, name_of_speaker.get(speaker or "", names[row % len(names)]))
        for row, (clip, speaker) in enumerate(pairs)
    }


def _describe_speakers(examples: LabelledClips, fold_of: np.ndarray) -> str:
    """Say whether the folds of a file are disjoint in speakers."""
    groups = speaker_groups(examples)
    if groups is None:
        return "speakers not known for all clips, so whether they are kept apart is not known"
    folds_of_speaker = [len(np.unique(fold_of[groups == speaker])) for speaker in np.unique(groups)]
    shared = sum(folds > 1 for folds in folds_of_speaker)
    if shared:
        return f"not speaker-disjoint ({shared} of {len(folds_of_speaker)} speakers are in several folds)"
    return f"speaker-disjoint ({len(folds_of_speaker)} speakers)"


def _existing_file(path: Path) -> Path:
    try:
        is_folder = path.is_dir()
        file = path / "run.json" if is_folder else path
        exists = file.exists()
    except (OSError, ValueError) as error:
        # Such as a name that is too long for the file system.
        raise MertoolError(f"--folds {str(path)[:SHOWN]}... is no path ({error.args[-1]}): {GIVE}") from error
    if not exists:
        reason = "is a folder without a run.json" if is_folder else "does not exist"
        raise MertoolError(f"--folds {path} {reason}: give a number, or {VALID_FORMS}")
    return file


def _emobox_folders(path: Path) -> list[Path]:
    """Return the folders `fold_1`, `fold_2`, ... of a corpus of EmoBox; empty for any other path."""
    try:
        return sorted(folder for folder in path.glob(f"{FOLD_FOLDER}*") if folder.is_dir()) if path.is_dir() else []
    except (OSError, ValueError):
        return []


def _read_emobox_folders(folders: Iterable[Path]) -> list[dict[str, str]]:
    """Return the rows that EmoBox's CSV would have."""
    return [
        {"fold": folder.name.removeprefix(FOLD_FOLDER), "split": row.split or "", "file": row.name}
        for folder in folders
        for row in emobox.read_labels(folder).rows
    ]


def _natural_order(name: str) -> tuple[int, int, str]:
    """Sort key: fold 2 comes before fold 10, and numbers before names."""
    digits = name.lstrip("0")
    # By length, since a number may have too many digits to be converted.
    return (0, len(digits), digits) if name.isdecimal() else (1, 0, name)


def read_run_folds(file: Path) -> dict[str, int]:
    """Return the fold by clip id that a run.json names; raises MertoolError for anything but folds of a run."""
    folds = read_json_object(file, GIVE).get("folds")
    if not isinstance(folds, dict) or not folds:
        raise MertoolError(f"{file} holds no folds of a run: {GIVE}")
    for clip, fold in folds.items():
        # JSON's true is an int for Python.
        if type(fold) is not int or not 0 <= fold < MAX_FOLDS:
            raise MertoolError(
                f"{file} puts clip '{clip[:SHOWN]}' into fold {str(fold)[:SHOWN]}: folds of a run are whole numbers "
                f"from 0 to {MAX_FOLDS - 1}"
            )
    return folds


def _read_csv(file: Path, clips: Iterable[str]) -> dict[str, str]:
    """Return the fold by clip id of a CSV in one of the two forms."""
    try:
        text = read_bytes(file, GIVE).decode("utf-8-sig")
        rows_of_cells = csv.reader(io.StringIO(text, newline=""))
        lines = [[normalize(cell) for cell in row] for row in rows_of_cells if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise MertoolError(f"{file} cannot be read as a CSV in UTF-8 ({error}): {GIVE}") from error
    if not lines:
        raise MertoolError(f"{file} is empty: {GIVE}")
    header = [name.lower() for name in lines[0]]
    if len(set(header)) < len(header):
        raise MertoolError(f"{file} has a column twice in '{','.join(header)[:200]}': {GIVE}")
    uneven = [number for number, row in enumerate(lines, start=1) if len(row) != len(header)]
    if uneven:
        raise MertoolError(f"{file}: row {uneven[0]} has {len(lines[uneven[0] - 1])} cells, the header {len(header)}")
    rows = [dict(zip(header, row, strict=True)) for row in lines[1:]]
    if {"clip", "fold"} <= set(header):
        return _parse_clip_rows(file, rows)
    if {"fold", "split", "file"} <= set(header):
        return _match_files(file, clips, _parse_emobox_rows(file, rows))
    raise MertoolError(f"{file} has the columns '{','.join(header)[:200]}': {GIVE}")


def _parse_clip_rows(file: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    name_of_clip: dict[str, str] = {}
    faults = []
    for number, row in enumerate(rows, start=2):
        clip = row["clip"]
        try:
            fold = _fold_name(row["fold"])
        except ValueError as error:
            faults.append(f"row {number}: {error}")
            continue
        if not clip:
            faults.append(f"row {number}: clip is empty")
        elif name_of_clip.setdefault(clip, fold) != fold:
            faults.append(f"row {number}: '{clip[:SHOWN]}' is in fold {name_of_clip[clip]} and in fold {fold}")
    if faults:
        raise combine_errors(str(file), faults)
    return name_of_clip


def _fold_name(cell: str) -> str:
    """Return the name of a fold, a whole number without leading zeros; raises ValueError for what cannot be a name.

    Spreadsheets write 1.0 for 1 and nan for an empty cell, and -1 often means none.
    """
    if not cell:
        raise ValueError("fold is empty")
    if len(cell) > SHOWN or not cell.isprintable():
        raise ValueError(f"the fold {cell[:SHOWN]!r} has more than {SHOWN} characters, or some that cannot be printed")
    if cell.isdecimal():
        return cell.lstrip("0") or "0"
    try:
        number = float(cell)
    except ValueError:
        return cell
    if not number.is_integer() or number < 0:
        raise ValueError(f"fold {cell}: give a name or a whole number from 0")
    return str(int(number))


def _parse_emobox_rows(file: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    """Return the fold by file name: the one whose test split the file is in."""
    fold_of_file: dict[str, str] = {}
    faults = []
    for number, row in enumerate(rows, start=2):
        name = row["file"]
        try:
            fold = row["fold"] = _fold_name(row["fold"])
        except ValueError as error:
            faults.append(f"row {number}: {error}")
            continue
        if row["split"].lower() == "test" and fold_of_file.setdefault(name, fold) != fold:
            faults.append(f"{name} is in the test split of fold {fold_of_file[name]} and of fold {fold}")
    for name in dict.fromkeys(row["file"] for row in rows if row["file"] not in fold_of_file):
        faults.append(f"{name} is in no test split")
    for row in rows:
        if row["split"].lower() != "test" and fold_of_file.get(row["file"]) == row["fold"]:
            faults.append(f"{row['file']} is in both splits of fold {row['fold']}")
    if faults:
        raise combine_errors(f"{file}: the test splits are no partition of the files", faults, max_listed=5)
    return fold_of_file


def _match_files(file: Path, clips: Iterable[str], fold_of_file: dict[str, str]) -> dict[str, str]:
    """Return the fold by clip id; a clip is the stem of its file, or the path joined by `__`, as manifests name it."""
    files_of_id: dict[str, list[str]] = {}
    for name in fold_of_file:
        components = PurePosixPath(name).with_suffix("").parts
        for start in range(len(components)):
            files_of_id.setdefault("__".join(components[start:]), []).append(name)
    matches = {clip: files_of_id[clip] for clip in clips if clip in files_of_id}
    ambiguous = [f"'{clip}' may be {names[0]} or {names[1]}" for clip, names in matches.items() if len(names) > 1]
    if ambiguous:
        raise combine_errors(f"{file}: clips that fit several files", ambiguous, max_listed=5)
    return {clip: fold_of_file[names[0]] for clip, names in matches.items()}

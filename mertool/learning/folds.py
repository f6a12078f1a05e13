"""Folds: stratified by class, disjoint in speakers where all are known, seeded; or read from a file."""

import csv
import io
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from mertool.errors import MertoolError, combine_errors
from mertool.files import digest_json, write_atomic
from mertool.learning.labelled_clips import LabelledClips

FORMS = "a CSV with the columns clip,fold; the folder or run.json of a run; EmoBox's CSV with fold,split,file"


@dataclass(frozen=True)
class Folds:
    """Fold of each example (N,), and how they were made, in words."""

    of: np.ndarray
    count: int
    kind: str

    def train(self, fold: int) -> np.ndarray:
        """Rows outside `fold`."""
        return np.flatnonzero(self.of != fold)

    def held_out(self, fold: int) -> np.ndarray:
        """Rows of `fold`."""
        return np.flatnonzero(self.of == fold)

    def to_json(self, examples: LabelledClips) -> dict[str, int]:
        """Clip to fold, as stored with a run."""
        return dict(zip(examples.clips, map(int, self.of), strict=True))


def make_folds(examples: LabelledClips, count: int, seed: int) -> Folds:
    """`count` folds; by speaker where every speaker is known and there are at least two."""
    if count < 2:
        raise MertoolError(f"{count} folds: give at least 2")
    if len(examples) < count:
        raise MertoolError(
            f"{len(examples)} labelled clips with features are fewer than {count} folds: give --folds less"
        )
    groups = speaker_groups(examples)
    if groups is not None:
        asked, speakers = count, len(set(examples.speakers))
        count = min(asked, speakers)
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        fewer = f", too few for the {asked} asked for" if asked > speakers else ""
        kind = f"{count} folds, speaker-disjoint ({speakers} speakers{fewer})"
    else:
        splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
        kind = f"{count} folds, speakers not known for all clips, so not kept apart"
        most = np.bincount(examples.labels).max()
        if most < count:
            raise MertoolError(
                f"the largest class has {most} clips, fewer than {count} folds: give --folds {most} or less"
            )
    of = np.zeros(len(examples), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a rare class that is not in every fold
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(examples)), examples.labels, groups)):
            of[held_out] = fold
    for fold in range(count):
        if len(np.unique(examples.labels[of != fold])) < 2:
            raise MertoolError(
                f"training part {fold + 1} of {count} has one class only: give fewer --folds or more clips"
            )
    return Folds(of, count, kind)


def speaker_groups(examples: LabelledClips) -> np.ndarray | None:
    """Speaker (N,) of each clip if all are known and there are at least two, else None."""
    speakers = set(examples.speakers)
    return None if None in speakers or len(speakers) < 2 else np.array([str(name) for name in examples.speakers])


# ---------------------------------------------------------------- folds of a file


def get_folds(given: int | Path, examples: LabelledClips, seed: int, whole: bool = True) -> Folds:
    """What `--folds` asks for: so many folds made here, or those of a file (`whole`: it must name every example)."""
    return read_folds(given, examples, whole) if isinstance(given, Path) else make_folds(examples, given, seed)


def folds_key(given: int | Path | None) -> int | str | None:
    """What stands for `--folds` in a run's key: the number, or the digest of the file's content."""
    return digest_json(_file_of(given).read_bytes().hex()) if isinstance(given, Path) else given


def folds_option(given: int | Path | None) -> int | str | None:
    """What `--folds` asks for, apart from what stands in a file."""
    return "file" if isinstance(given, Path) else given


def write_folds(path: Path, examples: LabelledClips, folds: Folds) -> None:
    """Write the CSV `clip,fold` that `read_folds` takes."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["clip", "fold"])
    writer.writerows(folds.to_json(examples).items())
    write_atomic(path, buffer.getvalue())


def read_folds(path: Path, examples: LabelledClips, whole: bool = True) -> Folds:
    """Folds of a file, for these examples; they are numbered from 0 in the order of their names.

    The file is a CSV with the columns `clip,fold`, a run of mertool (its folder or run.json), or EmoBox's
    CSV (`fold,split,file`), whose test parts must part the files. Clips of the file that are no examples
    are passed over; an example without a fold is an error. A run may lack a few clips, those without its modality:
    they go where their speaker is; without `whole` any file may.
    """
    file = _file_of(path)
    found = _from_run(file) if file.suffix == ".json" else _from_csv(file, examples.clips)
    if (file.suffix == ".json" or not whole) and 2 * sum(clip in found for clip in examples.clips) > len(examples):
        found = assign_missing_folds(found, examples)
    without = [clip for clip in examples.clips if clip not in found]
    if without:
        raise MertoolError(
            f"{file}: {len(without)} of {len(examples)} labelled clips have no fold (first: '{without[0]}'): add them, "
            "or let mertool make folds with --folds NUMBER"
        )
    names = sorted({found[clip] for clip in examples.clips}, key=_in_order)
    of = np.array([names.index(found[clip]) for clip in examples.clips], np.int64)
    if len(names) < 2:
        raise MertoolError(f"{file} puts all {len(examples)} labelled clips into fold {names[0]}: two are needed")
    for number, name in enumerate(names):
        classes = len(np.unique(examples.labels[of != number]))
        if classes < 2:
            raise MertoolError(f"{file}: without fold {name} one class only is left to train on: merge folds")
    return Folds(of, len(names), f"{len(names)} folds of {path.name}, {_disjoint(examples, of)}")


def assign_missing_folds(table: dict[str, str], examples: LabelledClips) -> dict[str, str]:
    """Fold of every example: that of `table`, else that of its speaker's clips there, else one after the other."""
    names = sorted(set(table.values()), key=_in_order)
    pairs = list(zip(examples.clips, examples.speakers, strict=True))
    of_speaker = {speaker: table[clip] for clip, speaker in pairs if clip in table and speaker}
    return {
        clip: table.get(clip, of_speaker.get(speaker or "", names[row % len(names)]))
        for row, (clip, speaker) in enumerate(pairs)
    }


def _disjoint(examples: LabelledClips, of: np.ndarray) -> str:
    """Whether folds (N,) keep speakers apart, as found in the data."""
    groups = speaker_groups(examples)
    if groups is None:
        return "speakers not known for all clips, so whether they are kept apart is not known"
    parts = [len(np.unique(of[groups == speaker])) for speaker in np.unique(groups)]
    shared = sum(count > 1 for count in parts)
    if shared:
        return f"not speaker-disjoint ({shared} of {len(parts)} speakers stand in several folds)"
    return f"speaker-disjoint ({len(parts)} speakers)"


def _file_of(path: Path) -> Path:
    file = path / "run.json" if path.is_dir() else path
    if not file.exists():
        what = "is a folder without a run.json" if path.is_dir() else "does not exist"
        raise MertoolError(f"--folds {path} {what}: give a number, or {FORMS}")
    return file


def _in_order(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def _from_run(file: Path) -> dict[str, str]:
    """Clip to fold of a run."""
    try:
        folds = json.loads(file.read_text(encoding="utf-8"))["folds"]
        return {str(clip): str(int(fold)) for clip, fold in folds.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MertoolError(f"{file} holds no folds of a run: give {FORMS}") from error


def _from_csv(file: Path, clips: Iterable[str]) -> dict[str, str]:
    """Clip to fold of a CSV in one of the two forms."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            lines = [[cell.strip() for cell in row] for row in csv.reader(opened) if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MertoolError(f"{file} cannot be read as a CSV in UTF-8 ({error}): give {FORMS}") from error
    if not lines:
        raise MertoolError(f"{file} is empty: give {FORMS}")
    header = [name.lower() for name in lines[0]]
    uneven = [number for number, row in enumerate(lines, start=1) if len(row) != len(header)]
    if uneven:
        raise MertoolError(f"{file}: row {uneven[0]} has {len(lines[uneven[0] - 1])} cells, the header {len(header)}")
    rows = [dict(zip(header, row, strict=True)) for row in lines[1:]]
    if {"clip", "fold"} <= set(header):
        return _from_rows(file, rows)
    if {"fold", "split", "file"} <= set(header):
        return _from_emobox(file, rows, clips)
    raise MertoolError(f"{file} has the columns '{','.join(header)}': give {FORMS}")


def _from_rows(file: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    faults = []
    for number, row in enumerate(rows, start=2):
        clip, fold = row["clip"], row["fold"]
        if not clip or not fold:
            faults.append(f"row {number}: {'clip' if not clip else 'fold'} is empty")
        elif found.setdefault(clip, fold) != fold:
            faults.append(f"row {number}: '{clip}' stands in fold {found[clip]} and in fold {fold}")
    if faults:
        raise combine_errors(str(file), faults)
    return found


def _from_emobox(file: Path, rows: list[dict[str, str]], clips: Iterable[str]) -> dict[str, str]:
    """Clip to fold: a file's fold is the one in whose test part it stands; its stem or path is the clip."""
    tested: dict[str, str] = {}
    faults = []
    for row in rows:
        name, fold = row["file"], row["fold"]
        if row["split"].lower() == "test" and tested.setdefault(name, fold) != fold:
            faults.append(f"{name} is in the test part of fold {tested[name]} and of fold {fold}")
    for name in dict.fromkeys(row["file"] for row in rows if row["file"] not in tested):
        faults.append(f"{name} is in no test part")
    for row in rows:
        if row["split"].lower() != "test" and tested.get(row["file"]) == row["fold"]:
            faults.append(f"{row['file']} is in both parts of fold {row['fold']}")
    if faults:
        raise combine_errors(f"{file}: the test parts do not part the files", faults, max_listed=5)
    named: dict[str, list[str]] = {}
    for name in tested:
        parts = PurePosixPath(name).with_suffix("").parts
        for start in range(len(parts)):
            named.setdefault("__".join(parts[start:]), []).append(name)
    chosen = {clip: named[clip] for clip in clips if clip in named}
    unclear = [f"'{clip}' may be {names[0]} or {names[1]}" for clip, names in chosen.items() if len(names) > 1]
    if unclear:
        raise combine_errors(f"{file}: file names that fit several files", unclear, max_listed=5)
    return {clip: tested[names[0]] for clip, names in chosen.items()}

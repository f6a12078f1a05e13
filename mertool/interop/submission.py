"""Submissions to the MER challenges: the list of candidates, and a CSV with one label for each."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from mertool.errors import MertoolError, combine_errors
from mertool.files import write_atomic
from mertool.interop.columns import read_clip_names
from mertool.manifest import EMOTIONS

MAX_NAMES = 10  # that a message lists
NO_VALENCE = "0"  # where valence is not predicted; the scripts of the challenge expect a number


def read_candidates(path: Path) -> list[str]:
    """Return the ids of the clips that a challenge wants labels of, in the order of its list.

    Raises MertoolError if the list is empty or repeats a clip.
    """
    names = [name for name in read_clip_names(path, "candidates") if name]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise MertoolError(f"{path}: names that are listed more than once: {list_names(repeated)}; list each once")
    if not names:
        raise MertoolError(f"{path} names no clip: give the challenge's list of candidates")
    return names


def check_candidates(
    path: Path, names: Sequence[str], clips: Sequence[str], *, source: object, classes: tuple[str, ...]
) -> None:
    """Raise one error for all reasons why labels of `clips` are no submission for the candidates `names`."""
    faults = []
    if unknown := [name for name in classes if name not in EMOTIONS]:
        faults.append(f"the bundle's classes {', '.join(unknown)} are none of the challenge's ({', '.join(EMOTIONS)})")
    if missing := sorted(set(names) - set(clips)):
        faults.append(f"candidates that are not in {source}: {list_names(missing)}")
    if faults:
        raise combine_errors(f"no submission for {path}", faults)


def write_submission(
    path: Path, labels: Mapping[str, str], columns: Sequence[str], *, valence: Mapping[str, float] | None = None
) -> None:
    """Write `labels` by clip, in their order, in the columns of a challenge: `name,discrete` or with `valence`.

    Clips that `valence` lacks get the mean of the others; without any prediction of it the column is 0.
    """
    mean = f"{fmean(valence.values()):.6g}" if valence else NO_VALENCE
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for clip, label in labels.items():
        number = f"{valence[clip]:.6g}" if valence and clip in valence else mean
        cells = {"name": clip, "discrete": label, "valence": number}
        writer.writerow([cells[column] for column in columns])
    write_atomic(path, buffer.getvalue())


def list_names(names: Sequence[str]) -> str:
    """Return the number of names and the first ones: `2 (a, b)`."""
    listed = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    return f"{len(names)} ({listed})"

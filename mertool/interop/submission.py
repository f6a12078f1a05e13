"""Submissions to the MER challenges: the list of candidates, and a CSV with one label for each."""

import csv
import io
from collections import Counter
from pathlib import Path

from mertool.errors import MertoolError, combine_errors
from mertool.files import write_atomic
from mertool.interop.columns import read_clip_names
from mertool.manifest import EMOTIONS

MAX_NAMES = 10  # that a message lists


def read_candidates(path: Path) -> list[str]:
    """Return the ids of the clips that a challenge wants labels of, in the order of its list.

    Raises MertoolError if the list is empty or repeats a clip.
    """
    names = [name for name in read_clip_names(path, "candidates") if name]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise MertoolError(f"{path}: names that are listed more than once: {_list_names(repeated)}; list each once")
    if not names:
        raise MertoolError(f"{path} names no clip: give the challenge's list of candidates")
    return names


def check_candidates(path: Path, names: list[str], clips: list[str], *, source: Path, classes: tuple[str, ...]) -> None:
    """Raise one error for all reasons why labels of `clips` are no submission for the candidates `names`."""
    faults = []
    if unknown := [name for name in classes if name not in EMOTIONS]:
        faults.append(f"the bundle's classes {', '.join(unknown)} are none of the challenge's ({', '.join(EMOTIONS)})")
    if missing := sorted(set(names) - set(clips)):
        faults.append(f"candidates that are not in {source}: {_list_names(missing)}")
    if extra := sorted(set(clips) - set(names)):
        faults.append(f"clips of {source} that are no candidates: {_list_names(extra)}, give a manifest without them")
    if faults:
        raise combine_errors(f"no submission for {path}", faults)


def write_submission(path: Path, names: list[str], labels: dict[str, str], *, reasons: Path) -> None:
    """Write `name,discrete` for exactly the candidates, in their order.

    Without a label for each, no file is left at `path`, and a MertoolError points to `reasons`, the file that says why.
    """
    if missing := [name for name in names if name not in labels]:
        path.unlink(missing_ok=True)
        raise MertoolError(
            f"no submission: candidates without a prediction: {_list_names(missing)}; see {reasons}, repair the files "
            "and run the same command again"
        )
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["name", "discrete"])
    writer.writerows([name, labels[name]] for name in names)
    write_atomic(path, buffer.getvalue())


def _list_names(names: list[str]) -> str:
    """Return the number of names and the first ones: `2 (a, b)`."""
    listed = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    return f"{len(names)} ({listed})"

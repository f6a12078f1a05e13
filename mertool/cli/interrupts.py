"""Ctrl-C and SIGTERM: each command says in one line what it keeps, and whether the same command resumes."""

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mertool.errors import count_of

NOTHING_YET = "it starts anew, and what was there before is unchanged"


class Interrupted(BaseException):
    """SIGINT or SIGTERM; not an Exception, so that no handler of errors swallows it.

    code: exit code of the process. kept: what the command keeps, in words; empty until a command says it.
    """

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code
        self.kept = ""

    @property
    def message(self) -> str:
        """One line for the user."""
        purpose = " to resume" if self.kept else ""
        return f"interrupted: run the same command again{purpose}; {self.kept or NOTHING_YET}"


@contextmanager
def keeping(describe: Callable[[], str]) -> Iterator[None]:
    """Let an interrupt of the work within say what is kept: `describe` looks after the work has been closed.

    It returns an empty string where nothing is kept.
    """
    try:
        yield
    except Interrupted as stop:
        stop.kept = describe()
        raise


def kept_clips(stores: Sequence[Path]) -> str:
    """Say where the clips are that an extraction finished: in parts of its stores, and in transcripts beside them.

    The stores of the shards of a store, and the face crops beside it, are looked for too.
    """
    folders = [
        folder
        for store in stores
        for pattern in (f"{glob.escape(store.stem)}*.parts", "faces*.h5.parts")
        for folder in sorted(store.parent.glob(pattern))
        if any(folder.glob("part-*.h5"))
    ]
    transcripts = [path for store in stores if (path := store.with_name(f"{store.stem}.transcripts.csv")).exists()]
    places = ", ".join(str(path) for path in dict.fromkeys([*folders, *transcripts]))
    return f"finished clips are kept in {places}" if places else ""


def kept_features(folder: Path) -> str:
    """Say that the features in a cache folder are kept."""
    files = folder.rglob("*") if folder.is_dir() else ()
    kept = any(path.suffix in (".h5", ".csv") for path in files)
    return f"finished clips are kept in {folder}" if kept else ""


def kept_adapters(runs: Sequence[Path]) -> str:
    """Say how many adapters of fine-tuning runs are finished, and that the cached audio features are kept."""
    folders = [run.absolute().with_name(f".{run.name}.unfinished") for run in runs]
    count = sum(len(list(folder.glob("*.safetensors"))) for folder in folders)
    if count:
        return f"{count_of(count, 'finished adapter')} and the features in frozen-layers are kept"
    has_features = any(any(run.absolute().parent.glob("frozen-layers/*")) for run in runs)
    return "the features in frozen-layers are kept, no adapter is finished yet" if has_features else ""


def kept_checkpoint(run: Path) -> str:
    """Say that the checkpoint of an alignment is kept."""
    pattern = f".{glob.escape(run.name)}.unfinished-*.safetensors"
    checkpoints = any(run.absolute().parent.glob(pattern))
    return "the training continues from its last checkpoint, at most about a minute old" if checkpoints else ""

"""`Run`: the folder a stage leaves behind, and the rules that keep it whole.

A run folder holds `run.json` (stage, options, seed, folds, versions, fingerprints, label names),
`metrics.json`, `*.safetensors` and plots. It is made under a temporary name and renamed when all is
written, so a folder with a `run.json` is always complete. `key` names everything the result depends on:
the same command over the same input finds its run and does not compute it again.
"""

import glob
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from mertool import __version__
from mertool.environment import machine_facts, package_versions
from mertool.errors import MertoolError
from mertool.files import (
    check_replaceable,
    check_writable,
    content_digest,
    digest_json,
    explain_write_errors,
    make_folder,
    write_atomic,
)
from mertool.run_record import is_valid_entry
from mertool.untrusted import read_json_object

Sources = Mapping[str, Path | Sequence[Path] | None]
DAMAGED = "the run is damaged, make it again"


class WrongStageError(MertoolError):
    """A run was given where one of another stage is needed."""

    def __init__(self, folder: Path, actual_stage: str, stage: str):
        super().__init__(
            f"{folder} is a run of {actual_stage}, one of {stage} is needed: give the -o folder of `mertool {stage}`"
        )
        self.actual_stage = actual_stage


@dataclass(frozen=True)
class Run:
    """A complete run.

    Attributes:
        folder: Its folder.
        info: The content of run.json.
    """

    folder: Path
    info: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, stage: str, *needs: str) -> "Run":
        """Read a run of one stage.

        Raises MertoolError if `folder` is no run, or if its run.json lacks one of the entries `needs`, and
        WrongStageError if it is a run of another stage.
        """
        file, remedy = folder / "run.json", f"run `mertool {stage}` again with --overwrite"
        if not file.exists():
            raise MertoolError(f"{folder} is not a run: there is no run.json in it. `mertool {stage}` makes one")
        info = read_json_object(file, remedy)
        actual_stage = info.get("stage")
        missing = [name for name in ("stage", "key", *(needs if actual_stage == stage else ())) if name not in info]
        if missing or not isinstance(actual_stage, str) or not isinstance(info["key"], str):
            lacking = ", ".join(missing) or "a valid stage or key"
            raise MertoolError(f"{file} cannot be read (it lacks {lacking}): {remedy}")
        if actual_stage != stage:
            raise WrongStageError(folder, actual_stage, stage)
        if wrong := [name for name in needs if not is_valid_entry(name, info[name])]:
            raise MertoolError(f"{file} cannot be read (no stage writes such an entry: {', '.join(wrong)}): {remedy}")
        return cls(folder, info)

    @property
    def metrics(self) -> dict[str, Any]:
        """The scores and other results of the run, from metrics.json; raises MertoolError if it cannot be read."""
        return read_json_object(self.folder / "metrics.json", DAMAGED)

    @property
    def is_complete(self) -> bool:
        """True if every file exists and is as long as it was written."""
        sizes = self.info.get("bytes_of_files", {})
        files = [(self.folder / name, size) for name, size in sizes.items()] if isinstance(sizes, dict) else []
        return all(file.is_file() and file.stat().st_size == size for file, size in files)

    def digest(self) -> str:
        """Digest of the trained parts (all safetensors), or of the key where there are none."""
        tensors = sorted(self.folder.rglob("*.safetensors"))
        names = [str(t.relative_to(self.folder)) for t in tensors]
        return digest_json([names, content_digest(tensors)]) if tensors else str(self.info["key"])


def cache_key(stage: str, options: dict[str, Any], inputs: dict[str, Any]) -> str:
    """Return the digest of all that a run's result depends on; before the dash it is of the options alone."""
    of_options = digest_json({"stage": stage, "options": options, "mertool": __version__})
    of_everything = digest_json({"stage": stage, "options": options, "inputs": inputs, "mertool": __version__})
    return f"{of_options[:16]}-{of_everything[:48]}"


def find_reusable_run(folder: Path, stage: str, *, key: str, options: Any, inputs: Sequence[Path] = ()) -> Run | None:
    """Return the run in `folder` if it is the one asked for; raise MertoolError if it is something else.

    A run of the same options on data that changed is made anew, and so is one of which a file is missing or cut. One
    of other `options` (an Options with a field `overwrite`) is an error, unless `overwrite` is set: what was typed may
    be a slip, and the run may be hours of work. A folder that holds one of `inputs`, or a path that the options name,
    is an error too, because a new run would replace it.
    """
    check_replaceable(folder, *inputs, *_paths_of(options))
    overwrite = bool(options.overwrite)
    if not folder.exists():
        check_writable(folder)
        return None
    if not folder.is_dir():
        raise MertoolError(f"{folder} is a file: give a folder for the run")
    if not (folder / "run.json").exists():
        if any(folder.iterdir()):
            raise MertoolError(f"{folder} is not empty and not a run of mertool: give another -o")
        return None
    try:
        existing = Run.read(folder, stage)
    except WrongStageError as error:
        raise MertoolError(f"{folder} holds a run of {error.actual_stage}: give another -o") from None
    except MertoolError:
        if overwrite:
            return None
        raise
    if overwrite:
        return None
    if existing.info["key"] == key:
        return existing if existing.is_complete else None
    if existing.info.get("mertool") == __version__ and existing.info["key"].split("-")[0] != key.split("-")[0]:
        differing = _differing(existing.info.get("options"), options)
        raise MertoolError(
            f"{folder} holds a run of {stage} with other options{differing}: give --overwrite to replace it, or "
            "another -o"
        )
    return None


def _paths_of(options: Any) -> list[Path]:
    """Return the paths that options name; those of a training stage are all inputs."""
    values = [value if isinstance(value, tuple) else (value,) for value in vars(options).values()]
    return [item for value in values for item in value if isinstance(item, Path)]


def _differing(existing: Any, options: Any) -> str:
    """Return ` (epochs: 3 there, 5 here)`: the options of a run that were set otherwise and change the result."""
    existing = existing if isinstance(existing, dict) else {}
    requested = {name: value for name, value in options.affecting_result().items() if value is not None}
    changed = {name: value for name, value in _plain(requested).items() if existing.get(name, value) != value}
    differences = [f"{name}: {existing[name]} there, {value} here" for name, value in changed.items()]
    return f" ({'; '.join(differences)})" if differences else ""


def _plain(value: Any) -> Any:
    """Return options as JSON holds them."""
    return json.loads(json.dumps(value, default=str))


@contextmanager
def new_run(
    folder: Path,
    stage: str,
    *,
    key: str,
    options: dict[str, Any],
    sources: Sources | None = None,
    started: float | None = None,
    **facts: Any,
) -> Iterator["RunDraft"]:
    """Build a run beside `folder` and put it in place at the end; an error leaves the old one untouched.

    sources: the files that the stage read, by kind (`manifest`, `stores`), so that a report finds them again. started:
    time of the stage's start (`time.time()`), from which the run's duration is recorded.
    """
    target = folder.absolute()
    make_folder(target.parent)
    _recover_interrupted(target)
    draft_folder = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    info = {
        "stage": stage,
        "key": key,
        "options": _plain(options),
        "mertool": __version__,
        "versions": package_versions(),
        "machine": machine_facts(),
        "folder": str(target),
        "sources": _absolute(sources or {}),
        **facts,
    }
    draft = RunDraft(draft_folder, info, {})
    try:
        with explain_write_errors(folder):
            draft_folder.mkdir()
        yield draft
        draft.write_metrics()
        files = [file for file in sorted(draft_folder.rglob("*")) if file.is_file()]
        names = [file.relative_to(draft_folder).as_posix() for file in files]
        draft.info["bytes_of_files"] = {name: file.stat().st_size for name, file in zip(names, files, strict=True)}
        draft.info["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        if started is not None:
            draft.info["seconds"] = round(time.time() - started, 1)
        _write_json(draft_folder / "run.json", draft.info)
        with explain_write_errors(folder):
            old = target.with_name(f".{target.name}.old-{os.getpid()}")
            if target.exists():
                os.replace(target, old)
            try:
                os.replace(draft_folder, target)
            except OSError:
                if old.exists():
                    os.replace(old, target)
                raise
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft_folder, ignore_errors=True)


def _absolute(sources: Sources) -> dict[str, list[str]]:
    """Return the files by kind as run.json holds them; kinds without a file are left out."""
    listed = {kind: [paths] if isinstance(paths, Path) else list(paths or ()) for kind, paths in sources.items()}
    return {kind: [str(path.absolute()) for path in paths] for kind, paths in listed.items() if paths}


def _recover_interrupted(target: Path) -> None:
    """Put back the run, and remove the drafts, of a process that was killed here."""
    for leftover in sorted(target.parent.glob(f".{glob.escape(target.name)}.*-*")):
        kind, _, process = leftover.name.removeprefix(f".{target.name}.").partition("-")
        if kind not in ("tmp", "old") or not process.isdecimal() or psutil.pid_exists(int(process)):
            continue
        if kind == "old" and not target.exists():
            os.replace(leftover, target)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


@dataclass
class RunDraft:
    """A run in the making.

    Attributes:
        folder: Where its files are written; it is renamed at the end.
        info: What run.json will hold.
        metrics: What metrics.json will hold.
    """

    folder: Path
    info: dict[str, Any]
    metrics: dict[str, Any]

    def write_metrics(self) -> None:
        """Write metrics.json now; it is written at the end in any case."""
        _write_json(self.folder / "metrics.json", self.metrics)

    def save_tensors(self, name: str, tensors: dict[str, Any]) -> None:
        """Write `name`.safetensors, torch tensors only."""
        from safetensors.torch import save

        content = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        write_atomic(self.folder / f"{name}.safetensors", content)


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file into torch tensors on the CPU; raises MertoolError if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():  # opening a pipe would wait for a writer that never comes
        raise MertoolError(f"{path} is missing or not a file: {DAMAGED}")
    try:
        return load_file(path)
    except (OSError, SafetensorError, MemoryError) as error:
        raise MertoolError(f"{path} cannot be read ({error or 'not enough memory'}): {DAMAGED}") from error


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Return a value with None for NaN and infinity, which JSON does not have, and lists for tuples."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

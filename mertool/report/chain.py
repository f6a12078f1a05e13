"""The chain of runs: those that were given, those that they were made from, and the parts of them that are gone."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mertool.errors import MertoolError
from mertool.features import Recipe
from mertool.options.shared import EMOTION
from mertool.runs import Run
from mertool.store import FeatureStore
from mertool.untrusted import read_json_object

STAGES = ("probe-layers", "finetune", "compare", "align", "fuse")
TRAINED = {"adapter": "finetune", "aligner": "align"}
MAX_RUNS = 100


@dataclass(frozen=True, kw_only=True)
class MissingPart:
    """A part of a run that could not be read. run: the name of the run. part: its kind. path: where. reason: why."""

    run: str
    part: str
    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """Facts of a feature store that a run was made from.

    failures: clip ids by reason. n_clips: clips with features.
    """

    path: Path
    recipe: Recipe
    provenance: dict[str, Any]
    n_clips: int
    failures: dict[str, list[str]]


@dataclass(kw_only=True)
class ReportedRun:
    """A run of the chain.

    Attributes:
        name: Unique in the report: the folder's name, with as many parents as it takes.
        run: The run.
        metrics: Content of its metrics.json; empty if it cannot be read.
        given: True for a run that was given, False for one that another was made from.
        used: Names of the runs that it was made from, by kind.
        manifest: Its manifest, None if it is gone.
        stores: Its feature stores that are still there.
    """

    name: str
    run: Run
    metrics: dict[str, Any]
    given: bool
    used: dict[str, list[str]] = field(default_factory=dict)
    manifest: Path | None = None
    stores: list[StoreFacts] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """The stage that made it."""
        return str(self.run.info["stage"])


def open_run(folder: Path) -> Run:
    """Read a run of any stage; raise MertoolError if the folder is none."""
    file = folder / "run.json"
    if not file.exists():
        raise MertoolError(
            f"{folder} is not a run: there is no run.json in it. Give -o folders of {', '.join(STAGES)}, or JSON files "
            "of `mertool evaluate`"
        )
    info = read_json_object(file, "make the run again")
    stage, target = info.get("stage"), info.get("target", EMOTION)
    if stage not in STAGES:
        raise MertoolError(f"{file} cannot be read (it is of no stage of mertool: {', '.join(STAGES)}): make it again")
    if target != EMOTION:
        raise MertoolError(
            f"{folder} is a run of {str(target)[:40]}, a number: a report shows runs of classes, leave it out"
        )
    return Run.read(folder, stage)


class Chain:
    """The runs of a report, in the order in which they were made.

    Attributes:
        runs: By name.
        missing: Parts that are gone.
    """

    def __init__(self, folders: Sequence[Path]):
        self.missing: list[MissingPart] = []
        self.runs: dict[str, ReportedRun] = {}
        self._names: dict[Path, str] = {}
        self._stores: dict[Path, StoreFacts] = {}
        for folder in folders:
            self._add(open_run(folder), given=True)
        # Those that a run was made from stand before it.
        order = {name: None for root in list(self.runs) for name in self._made_before(root, set())}
        self.runs = {name: self.runs[name] for name in order}

    def has_run(self, folder: Path) -> bool:
        """Return True if the folder is a run of this chain."""
        return folder.resolve() in self._names

    def miss(self, run: str, part: str, path: object, reason: object) -> None:
        """Note a part that could not be read; each is noted once."""
        entry = MissingPart(run=run, part=part, path=str(path), reason=" ".join(str(reason).split()))
        if entry not in self.missing:
            self.missing.append(entry)

    def _made_before(self, name: str, seen: set[str]) -> Iterator[str]:
        if name in seen:
            return
        seen.add(name)
        for others in self.runs[name].used.values():
            for other in others:
                yield from self._made_before(other, seen)
        yield name

    def _add(self, run: Run, *, given: bool) -> str:
        place = run.folder.resolve()
        if place in self._names:
            name = self._names[place]
            self.runs[name].given |= given
            return name
        name = self._names[place] = self._unused_name(place)
        try:
            metrics = run.metrics
        except MertoolError as error:
            self.miss(name, "metrics", run.folder / "metrics.json", error)
            metrics = {}
        reported = self.runs[name] = ReportedRun(name=name, run=run, metrics=metrics, given=given)
        self._follow(reported)
        return name

    def _unused_name(self, folder: Path) -> str:
        for depth in range(1, len(folder.parts) + 1):
            name = "/".join(folder.parts[-depth:])
            if name not in self.runs:
                return name
        return str(folder)

    def _follow(self, reported: ReportedRun) -> None:
        """Find the manifest, the stores and the earlier runs of a run."""
        info = reported.run.info
        sources = info.get("sources")
        if not isinstance(sources, dict):
            self.miss(reported.name, "sources", reported.run.folder / "run.json", "it was made before runs named them")
            sources = {}
        for kind, paths in sources.items():
            for text in paths if isinstance(paths, list) else []:
                self._follow_source(reported, str(kind), str(text))
        for provenance, recipe in [*_origins(info), *((store.provenance, store.recipe) for store in reported.stores)]:
            for kind, stage in TRAINED.items():
                digest = getattr(recipe, kind, None)
                if isinstance(folder := provenance.get(kind), str):
                    self._follow_run(reported, kind, folder, stage=stage, digest=digest)

    def _follow_source(self, reported: ReportedRun, kind: str, text: str) -> None:
        path = find_moved(reported.run, text)
        if kind == "probe":
            self._follow_run(reported, kind, text, stage="probe-layers")
        elif kind == "runs":
            self._follow_run(reported, kind, text, stage="finetune")
        elif kind == "folds" and path is not None and path.is_dir() and (path / "run.json").exists():
            self._follow_run(reported, kind, text, stage=str(open_run(path).info["stage"]))
        elif path is None:
            self.miss(reported.name, kind, text, "it is no longer there")
        elif kind == "manifest":
            reported.manifest = path
        elif kind in ("stores", "audio", "video", "unlabelled"):
            try:
                if path not in self._stores:
                    self._stores[path] = read_store_facts(path)
                reported.stores.append(self._stores[path])
            except MertoolError as error:
                self.miss(reported.name, kind, path, error)

    def _follow_run(
        self, reported: ReportedRun, kind: str, text: str, *, stage: str, digest: str | None = None
    ) -> None:
        folder = find_moved(reported.run, text)
        try:
            if folder is None:
                raise MertoolError("it is no longer there")
            run = Run.read(folder, stage)
            if digest is not None and run.digest() != digest:
                raise MertoolError("it was trained again since, and is not the one that was used")
        except MertoolError as error:
            self.miss(reported.name, kind, text, error)
            return
        if len(self.runs) < MAX_RUNS:
            name = self._add(run, given=False)
            if name != reported.name and name not in reported.used.setdefault(kind, []):
                reported.used[kind].append(name)


def find_moved(run: Run, text: str) -> Path | None:
    """Return the path that run.json names, or the one that lies to the run as it did then; None if both are gone."""
    path, then = Path(text), run.info.get("folder")
    if path.exists():
        return path
    if isinstance(then, str) and path.is_absolute():
        moved = Path(os.path.normpath(run.folder.absolute() / os.path.relpath(path, then)))
        return moved if moved.exists() else None
    return None


def read_store_facts(path: Path) -> StoreFacts:
    """Return the facts of a store; raise MertoolError if it cannot be read."""
    with FeatureStore(path) as store:
        failures: dict[str, list[str]] = {}
        for failure in store.failures():
            failures.setdefault(failure.reason, []).append(failure.clip)
        return StoreFacts(
            path=path, recipe=store.recipe, provenance=store.provenance, n_clips=len(store), failures=failures
        )


def _origins(info: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Recipe | None]]:
    """Yield where the encoders, adapters and aligners of a run's features come from, with their recipes."""
    entries = [info, *(part for part in _as_list(info.get("parts")) if isinstance(part, dict))]
    for entry in entries:
        origin = entry.get("origin")
        if isinstance(origin, dict):
            try:
                recipe = Recipe.from_json(entry.get("recipe") or {})
            except (ValueError, TypeError, KeyError, AttributeError):
                recipe = None
            yield origin, recipe


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

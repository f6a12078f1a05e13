"""Stage `fuse`: one classifier over the features of any number of stores.

Folds x seeds of a head are trained at once. The score is of each clip by the members that did not train
on its fold; nothing is chosen on held-out clips. The run is a bundle: it holds, or names by digest,
everything `predict` needs to score raw clips.
"""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mertool import fusion, peft_methods, registry
from mertool.devices import resolve_device
from mertool.errors import MertoolError
from mertool.files import clear_write_errors
from mertool.manifest import EMOTIONS, Manifest
from mertool.metrics import confusion, score_json, scores_of
from mertool.runs import Run, RunDraft, make_key, new_run, reuse
from mertool.store import FeatureStore
from mertool.training.examples import Examples, labelled_examples, present_in
from mertool.training.folds import Folds, folds_key, get_folds
from mertool.training.members import Features, Schedule, member_logits, train_members

COPY_BYTES = 200_000_000  # local encoders up to this size are copied into the bundle


@dataclass(frozen=True)
class FuseOptions:
    """head: a file of mertool/fusion. folds x seeds members are trained. width: hidden size of the head.

    folds: a number, a file of folds, or None: those of the adapters where features are adapted, else five.
    """

    head: str = "attention"
    folds: int | Path | None = None
    seeds: int = 3
    width: int = 128
    dropout: float = 0.3
    epochs: int = 60
    batch: int = 32
    learning_rate: float = 1e-3
    seed: int = 0
    device: str = "auto"
    classes: tuple[str, ...] = EMOTIONS
    overwrite: bool = False

    def __post_init__(self) -> None:
        registry.check(fusion.PACKAGE, "fusion head", self.head)
        if min(self.seeds, self.width, self.epochs, self.batch) < 1:
            raise MertoolError("--seeds, --width, --epochs and --batch must be at least 1")
        if not 0 <= self.dropout < 1:
            raise MertoolError(f"dropout {self.dropout:g}: give a number from 0 to below 1")


@dataclass(frozen=True)
class _Data:
    """Features of all examples, list of (N, L, D), and which are present (N, M)."""

    names: list[str]
    features: Features
    present: torch.Tensor
    labels: torch.Tensor

    def only(self, number: int) -> "_Data":
        """One modality, for its score alone."""
        column = self.present[:, number : number + 1]
        return _Data([self.names[number]], [self.features[number]], column, self.labels)


def fuse(
    stores: list[Path], manifest: Manifest, output: Path, options: FuseOptions, progress: Callable[[int, int], None]
) -> tuple[Run, bool]:
    """Train and save the bundle; the run, and whether it was there already."""
    names = _names(stores)
    with ExitStack() as stack:
        opened = [stack.enter_context(FeatureStore(path)) for path in stores]
        _check(opened)
        key = make_key(
            "fuse",
            {k: v for k, v in asdict(options).items() if k not in ("device", "overwrite", "folds")},
            {
                "folds": None if options.folds is None else folds_key(options.folds),
                "stores": [
                    [name, store.fingerprint, store.digests()] for name, store in zip(names, opened, strict=True)
                ],
                "manifest": manifest.digest(),
            },
        )
        if found := reuse(output, "fuse", key, options.overwrite):
            return found, True
        examples = labelled_examples(manifest, options.classes)
        data = _gather(opened, names, examples, resolve_device(options.device))
        folds = _choose_folds(opened, examples, options)
        facts = _facts(opened, names, data)
        _train(data, examples, folds, output, key, facts, options, progress)
    return Run.read(output, "fuse"), False


def _names(stores: list[Path]) -> list[str]:
    names = [path.stem for path in stores]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise MertoolError(f"two stores are named '{repeated[0]}': the file name tells them apart in the results")
    return names


def _check(stores: list[FeatureStore]) -> None:
    for store in stores:
        if store.recipe.modality == "faces" or not store.pooled:
            raise MertoolError(f"{store.path} holds frames: fuse takes pooled stores (--pool mean)")


def _choose_folds(stores: list[FeatureStore], examples: Examples, options: FuseOptions) -> Folds:
    """Folds of the adapters where features are adapted: else one that learned from a speaker would give the
    features of clips that this speaker's fold holds out."""
    adapters = sorted({str(store.origin["adapter"]) for store in stores if store.recipe.adapter})
    if not adapters:
        return get_folds(5 if options.folds is None else options.folds, examples, options.seed)
    tables = [Run.read(Path(adapter), "finetune", "folds").info["folds"] for adapter in adapters]
    first = tables[0]
    for adapter, table in zip(adapters[1:], tables[1:], strict=True):
        if table != first:
            raise MertoolError(
                f"{adapters[0]} and {adapter} were trained on different folds: give `mertool finetune` the same --folds"
            )
    count = max(first.values()) + 1
    # Clips without sound have no adapter: they go where their speaker is.
    of_speaker = {
        speaker: first[clip] for clip, speaker in zip(examples.clips, examples.speakers, strict=True) if clip in first
    }
    of = [
        first.get(clip, of_speaker.get(speaker, row % count) if speaker else row % count)
        for row, (clip, speaker) in enumerate(zip(examples.clips, examples.speakers, strict=True))
    ]
    folds = Folds(np.array(of, np.int64), count, f"{count} folds, those of the adapters in {', '.join(adapters)}")
    others = isinstance(options.folds, int) and options.folds != count
    if isinstance(options.folds, Path):
        asked = get_folds(options.folds, examples, options.seed)
        known = np.isin(examples.clips, list(first))
        pairs = set(zip(asked.of[known].tolist(), folds.of[known].tolist(), strict=True))
        others = len(pairs) != max(asked.count, count)
    if others:
        raise MertoolError(
            f"the features were adapted on the {count} folds of {adapters[0]}, others would mix what adapters saw: "
            "leave out --folds"
        )
    return folds


def _gather(stores: list[FeatureStore], names: list[str], examples: Examples, device: torch.device) -> _Data:
    """Features of all examples; zeros where a modality is absent."""
    features, present = [], []
    for store in stores:
        here = present_in(store, examples)
        there = store.read([clip for clip, is_here in zip(examples.clips, here, strict=True) if is_here])
        if not np.isfinite(there).all():
            raise MertoolError(f"{store.path} holds NaN or infinity: see `mertool store check`, and extract it again")
        values = np.zeros((len(examples), *there.shape[1:]), np.float32)
        values[here] = there
        features.append(torch.from_numpy(values).to(device))
        present.append(torch.from_numpy(here))
    labels = torch.from_numpy(examples.labels).to(device)
    return _Data(names, features, torch.stack(present, 1).to(device), labels)


def _facts(stores: list[FeatureStore], names: list[str], data: _Data) -> dict[str, Any]:
    parts = [
        {
            "name": name,
            "modality": store.recipe.modality,
            "recipe": store.recipe.to_json(),
            "origin": store.origin,
            "shape": list(values.shape[1:]),
        }
        for name, store, values in zip(names, stores, data.features, strict=True)
    ]
    return {"parts": parts}


def _train(
    data: _Data,
    examples: Examples,
    folds: Folds,
    output: Path,
    key: str,
    facts: dict[str, Any],
    options: FuseOptions,
    progress: Callable[[int, int], None],
) -> None:
    systems = [(name, data.only(number)) for number, name in enumerate(data.names)] if len(data.names) > 1 else []
    systems.append(("fusion" if len(data.names) > 1 else data.names[0], data))
    total = len(systems) * options.epochs
    scores: dict[str, Any] = {}
    for number, (name, part) in enumerate(systems):
        step = partial(_step, progress, number * options.epochs, total)
        held_out, state, losses = _cross_validate(part, folds, options, step)
        # A clip without this modality gives it nothing to judge by; each system is scored where it can be.
        here = part.present.any(1).cpu().numpy()
        guess = held_out.argmax(1)
        scores[name] = {
            "clips": int(here.sum()),
            **score_json(examples.labels[here], guess[here], len(options.classes), options.seed),
        }
    with new_run(
        output,
        "fuse",
        key,
        {**asdict(options), "folds": None if options.folds is None else str(options.folds)},
        seed=options.seed,
        classes=list(options.classes),
        folds=folds.to_json(examples),
        **facts,
    ) as draft:
        draft.save_tensors("members", state)
        for number, part_facts in enumerate(draft.info["parts"]):
            _bundle(draft, number, part_facts)
        draft.metrics.update(
            {
                "clips": len(examples),
                "folds": folds.kind,
                "members": folds.count * options.seeds,
                "cross_validation": scores,
                "always_largest_class": _largest_class(examples.labels, len(options.classes)),
                "loss": losses,
            }
        )
        _draw(draft, examples.labels, guess, options.classes)


def _step(progress: Callable[[int, int], None], before: int, total: int, epoch: int, _: int) -> None:
    progress(before + epoch, total)


def _cross_validate(
    data: _Data, folds: Folds, options: FuseOptions, progress: Callable[[int, int], None]
) -> tuple[np.ndarray, dict[str, torch.Tensor], list[float]]:
    """Mean logits (N, C) of the members that did not train on a clip; all members' weights."""
    shapes = [(int(f.shape[1]), int(f.shape[2])) for f in data.features]
    usable = data.present.any(1).cpu().numpy()
    rows, seeds = [], []
    for fold in range(folds.count):
        train = folds.train(fold)
        for seed in range(options.seeds):
            rows.append(torch.from_numpy(train[usable[train]]).to(data.labels.device))
            seeds.append(options.seed * 1000 + seed)
    head, state, losses = train_members(
        lambda: fusion.build(options.head, shapes, len(options.classes), options.width, options.dropout),
        data.features,
        data.present,
        data.labels,
        rows,
        seeds,
        Schedule(options.epochs, options.batch, options.learning_rate),
        progress,
    )
    logits = member_logits(head, state, data.features, data.present).cpu().numpy()
    held_out = np.zeros(logits.shape[1:], np.float32)
    for fold in range(folds.count):
        members = slice(fold * options.seeds, (fold + 1) * options.seeds)
        held_out[folds.held_out(fold)] = logits[members][:, folds.held_out(fold)].mean(0)
    return held_out, state, losses


def _largest_class(labels: np.ndarray, classes: int) -> float:
    always = np.full_like(labels, np.bincount(labels).argmax())
    return float(scores_of(confusion(labels, always, classes))["waf"])


def _bundle(draft: RunDraft, number: int, part: dict[str, Any]) -> None:
    """Copy adapter, aligner and a small local encoder into the bundle; hub encoders are named by revision."""
    folder = draft.folder / f"part{number}"
    origin = part["origin"]
    with clear_write_errors(folder):
        if origin.get("adapter"):
            run = Run.read(Path(origin["adapter"]), "finetune")
            _same(part, "adapter", run)
            final = run.folder / "adapters" / peft_methods.FINAL
            shutil.copytree(final, folder / "adapters" / peft_methods.FINAL)
        if origin.get("aligner"):
            run = Run.read(Path(origin["aligner"]), "align")
            _same(part, "aligner", run)
            shutil.copytree(run.folder, folder / "aligner")
        local = Path(origin["encoder"]["checkpoint"])
        if local.is_dir() and _size(local) <= COPY_BYTES:
            shutil.copytree(local, folder / "encoder")


def _same(part: dict[str, Any], what: str, run: Run) -> None:
    if part["recipe"][what] != run.digest():
        raise MertoolError(
            f"store '{part['name']}' was made with an {what} that is no longer in {run.folder}: extract it again"
        )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _draw(draft: RunDraft, labels: np.ndarray, guess: np.ndarray, classes: tuple[str, ...]) -> None:
    from mertool.plots import confusion_matrix, score_bars

    scores = draft.metrics["cross_validation"]
    bars = {name: tuple(value["waf"].values()) for name, value in scores.items()}
    score_bars(draft.folder / "scores", bars, "Cross-validation", draft.metrics["always_largest_class"])
    confusion_matrix(draft.folder / "confusion", confusion(labels, guess, len(classes)), classes)

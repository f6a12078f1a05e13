"""Stage `align`: a visual encoder into the acoustic space, from clips without labels.

The anchor is the frozen sound of the same clip (`mertool/alignment/__init__.py`), the loss says how faces are drawn
to it (`mertool/alignment/losses/`). A fifth of the clips, at most 2,000, is held out for the scores, and an eighth,
at most 2,000, says when to stop. Labels train nothing; with `--manifest` they tell what alignment changed.
"""

import glob
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from mertool.alignment import losses
from mertool.alignment.data import Frames
from mertool.alignment.encoding import embed_stored, encode_distributed
from mertool.alignment.evaluation import probe_folds, probe_gain, validate
from mertool.alignment.false_negatives import FalseNegativeFilter
from mertool.alignment.targets import common_clips, load_acoustic_targets, split
from mertool.alignment.trainer import History, Pairs, Schedule, train
from mertool.devices import resolve_device, seed_everything
from mertool.encoders.aligner import MOST_FRAMES, Aligner
from mertool.errors import MertoolError, combine_errors
from mertool.features import Recipe
from mertool.files import check_writable
from mertool.learning.accelerator import make_accelerator
from mertool.learning.checkpoint import Checkpoint
from mertool.learning.folds import Folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.manifest import Manifest
from mertool.options.align import AlignOptions
from mertool.runs import OPTIONS_NOT_IN_KEY, Run, cache_key, find_reusable_run, new_run
from mertool.store import ClipFeatures, FeatureStore, StoreWriter, check_store

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Labels:
    """Labelled clips that have frames, and their folds."""

    examples: LabelledClips
    folds: Folds


def align(
    audio: Path,
    video: Path,
    output: Path,
    aligned: Path,
    manifest: Manifest | None,
    options: AlignOptions,
    progress: Progress,
) -> tuple[Run, bool]:
    """Train the aligner on the clips both stores hold, and write the aligned store of all video clips."""
    check_writable(aligned, audio, video)
    device = resolve_device(options.device)
    with FeatureStore(audio) as sound, FeatureStore(video) as sight:
        _check(sound, sight, aligned)
        labels = _read_labels(manifest, sight, options) if manifest else None
        key = _key(sound, sight, manifest, options)
        found = find_reusable_run(output, "align", key=key, options=options)
        accelerator = make_accelerator(device, torch.float32)
        if not found:
            _train(sound, sight, labels, output, key, options, accelerator, progress)
        accelerator.wait_for_everyone()
        run = found or Run.read(output, "align")
        if accelerator.is_main_process and not (found and _is_fresh(aligned, run, sight)):
            _write_aligned(aligned, run, sight, accelerator.device)
        accelerator.wait_for_everyone()
    return run, found is not None


def _check(sound: FeatureStore, sight: FeatureStore, aligned: Path) -> None:
    """Raise one error for all that is wrong with the stores, before the long work."""
    faults = []
    if sound.recipe.modality != "audio" or not sound.pooled:
        faults.append(f"--audio {sound.path}: a pooled store of `extract audio` is needed")
    if sight.recipe.modality != "video" or sight.pooled:
        faults.append(f"--video {sight.path}: frames are needed, from `extract video --pool none`")
    elif len(sight.layers) != 1:
        faults.append(f"--video {sight.path} holds {len(sight.layers)} layers: extract one, with --layers last")
    if aligned.exists():
        check_store(aligned, sight.recipe, overwrite=True)
        with FeatureStore(aligned) as old:
            if old.recipe.aligner is None:
                faults.append(f"--aligned {aligned} holds features that were not aligned: give another path")
    if faults:
        raise combine_errors("align", faults) if len(faults) > 1 else MertoolError(faults[0])
    common_clips(sound, sight)


def _read_labels(manifest: Manifest, sight: FeatureStore, options: AlignOptions) -> _Labels:
    examples = LabelledClips.from_manifest(manifest, options.classes)
    examples = examples.select(examples.present_in(sight))
    return _Labels(examples, probe_folds(examples, options.seed))


def _key(sound: FeatureStore, sight: FeatureStore, manifest: Manifest | None, options: AlignOptions) -> str:
    free = OPTIONS_NOT_IN_KEY if manifest else (*OPTIONS_NOT_IN_KEY, "classes")
    return cache_key(
        "align",
        {name: value for name, value in asdict(options).items() if name not in free},
        {
            "audio": [sound.fingerprint, sound.digests()],
            "video": [sight.fingerprint, sight.digests()],
            "manifest": manifest.digest() if manifest else None,
        },
    )


def _train(
    sound: FeatureStore,
    sight: FeatureStore,
    labels: _Labels | None,
    output: Path,
    key: str,
    options: AlignOptions,
    accelerator: Accelerator,
    progress: Progress,
) -> None:
    """Train, score, and put the run in place."""
    seed_everything(options.seed)
    clips = common_clips(sound, sight)
    parts = split(len(clips), options.seed)
    anchors = load_acoustic_targets(sound, clips, parts.train)
    negatives = FalseNegativeFilter(_false_negatives(options), anchors, parts.train, options.seed)
    pairs = Pairs(Frames(sight, sight.rows(clips), MOST_FRAMES), anchors, parts, negatives)
    aligner = Aligner(sight.channels, options.width, options.blocks, sound.channels, dropout=options.dropout)
    saved = _unfinished(output, key, accelerator.is_main_process)
    accelerator.wait_for_everyone()
    history = train(
        aligner,
        losses.load(options.loss).build(),
        pairs,
        schedule=_schedule(options),
        accelerator=accelerator,
        checkpoint=saved,
        progress=progress,
    )
    visual = encode_distributed(aligner, pairs.frames, parts.held_out, accelerator)
    if not accelerator.is_main_process:
        return
    metrics: dict[str, Any] = {
        "train_clips": len(parts.train),
        "development_clips": len(parts.develop),
        "held_out": validate(visual.cpu(), pairs.acoustic(parts.held_out, torch.device("cpu")), options.seed),
        "loss": history.loss,
        "development_loss": history.development_loss,
        "best_epoch": history.best_epoch,
        "false_negatives": negatives.to_json(),
    }
    if labels:
        metrics["probe"] = _probe(aligner, sight, labels, options, accelerator.device)
    facts = {
        "seed": options.seed,
        "audio": sound.recipe.to_json(),
        "video": sight.recipe.to_json(),
        "origin": sight.origin,
        "sizes": aligner.sizes,
        "held_out_clips": [clips[row] for row in parts.held_out],
        "development_clips": [clips[row] for row in parts.develop],
    }
    with new_run(output, "align", key=key, options=asdict(options), **facts) as draft:
        draft.save_tensors("aligner", aligner.state_dict())
        draft.metrics.update(metrics)
        _draw(draft.folder, metrics["held_out"], history, options)
    saved.remove()


def _schedule(options: AlignOptions) -> Schedule:
    return Schedule(
        options.epochs, options.batch, options.learning_rate, options.weight_decay, options.patience, options.seed
    )


def _false_negatives(options: AlignOptions) -> str:
    """Return which clips are not negatives of each other: as given, or what suits the loss."""
    return options.false_negatives or ("threshold" if losses.load(options.loss).NEGATIVES else "none")


def _unfinished(output: Path, key: str, writes: bool) -> Checkpoint:
    """Where this training is saved, beside the run; one of other options or clips is of no use any more."""
    target = output.absolute()
    path = target.with_name(f".{target.name}.unfinished-{key[-16:]}.safetensors")
    if writes:
        for other in target.parent.glob(f".{glob.escape(target.name)}.unfinished-*.safetensors"):
            if other != path:
                other.unlink(missing_ok=True)
    return Checkpoint(path, is_writer=writes)


def _probe(
    aligner: Aligner, sight: FeatureStore, labels: _Labels, options: AlignOptions, device: torch.device
) -> dict[str, Any]:
    """What a linear probe of the labelled clips gains by alignment."""
    examples = labels.examples
    rows = sight.rows(examples.clips)
    order = np.argsort(rows)
    frames, place = Frames(sight, rows[order], None), np.arange(len(rows))
    aligned = np.zeros((len(rows), aligner.sizes["acoustic"]), np.float32)
    for chosen, vectors in embed_stored(aligner, Frames(sight, rows[order], MOST_FRAMES), place, device):
        aligned[order[chosen]] = vectors.cpu().numpy()
    unaligned = np.zeros((len(rows), sight.channels), np.float32)
    with frames.in_order(place) as blocks:
        for chosen, found in blocks:
            unaligned[order[chosen]] = [one.astype(np.float32).mean(0) for one in found]
    return probe_gain(unaligned, aligned, examples, labels.folds, len(options.classes), options.seed)


def _draw(folder: Path, scores: dict[str, Any], history: History, options: AlignOptions) -> None:
    from mertool.plots import plot_epoch_curves, plot_retrieval_recall

    title = "Video frames to the sound of the same clip"
    label = f"{options.loss} (more clips in a batch, higher by itself)"
    plot_epoch_curves(
        folder / "loss", {"training": history.loss, "development": history.development_loss}, label, title
    )
    plot_retrieval_recall(folder / "recall", scores, f"{scores['clips']} held-out clips")


def _aligned_recipe(run: Run, sight: FeatureStore) -> Recipe:
    """That of `extract video --aligner RUN`, so both ways to the features give one store."""
    return Recipe.from_json({**sight.recipe.to_json(), "pool": "mean", "aligner": run.digest()})


def _is_fresh(aligned: Path, run: Run, sight: FeatureStore) -> bool:
    if not aligned.exists():
        return False
    with FeatureStore(aligned) as store:
        return store.fingerprint == _aligned_recipe(run, sight).fingerprint and store.digests() == sight.digests()


def _write_aligned(aligned: Path, run: Run, sight: FeatureStore, device: torch.device) -> None:
    """Embed every clip with frames, block by block; a killed command goes on after the last part written."""
    aligner = Aligner.load(run.folder).to(device)
    digests, facts = sight.digests(), sight.facts()
    origin = {**sight.origin, "aligner": str(run.folder.absolute())}
    with StoreWriter(aligned, _aligned_recipe(run, sight), origin, overwrite=True) as writer:
        rows = np.array([row for row, clip in enumerate(sight.ids) if writer.done.get(clip) != digests[clip]], np.int64)
        frames = Frames(sight, np.arange(len(sight)), MOST_FRAMES)
        for chosen, vectors in embed_stored(aligner, frames, rows, device):
            for row, vector in zip(chosen.tolist(), vectors.cpu().numpy(), strict=True):
                clip = sight.ids[row]
                seen = (float(facts["seconds"][row]), int(facts["frames_seen"][row]), float(facts["face_share"][row]))
                writer.add(ClipFeatures(clip, digests[clip], vector[None], *seen))
        for failure in sight.failures():
            writer.fail(failure)
        writer.finish(sight.ids)

"""Stage `align`: train a visual encoder to map face features into the acoustic space, without labels.

The target is the frozen audio of the same clip (`mertool/alignment/__init__.py`); a loss of `mertool/alignment/losses/`
compares the two. A fifth of the clips, at most 2,000, is held out for the scores, and an eighth, at most 2,000, chooses
the best epoch. Labels are never trained on; with `--manifest` a linear probe measures what alignment gains, and no
labelled clip is encoded by an aligner that was trained on it (`mertool/alignment/cross_fitting.py`).
"""

import glob
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from mertool.alignment import losses
from mertool.alignment.cross_fitting import AlignmentPlan, plan_alignment
from mertool.alignment.data import AlignmentData, FrameStream
from mertool.alignment.encoding import encode_distributed, encode_stream
from mertool.alignment.evaluation import evaluate_alignment, probe_folds, probe_gain
from mertool.alignment.false_negatives import FalseNegativeFilter
from mertool.alignment.targets import MAX_HELD_OUT_CLIPS, AlignmentSplit, common_clips, load_acoustic_targets
from mertool.alignment.trainer import AlignmentHistory, plan_epochs, train
from mertool.devices import resolve_device, seeded_torch
from mertool.encoders.aligner import FINAL, FOLDS, MAX_FRAMES, Aligner, CrossFittedAligner
from mertool.errors import ClipError, MertoolError, combine_errors
from mertool.features import Recipe
from mertool.files import check_writable
from mertool.learning.accelerator import make_accelerator
from mertool.learning.checkpoint import Checkpoint
from mertool.learning.folds import Folds, warn_of_rare_classes
from mertool.learning.labelled_clips import LabelledClips
from mertool.manifest import Manifest
from mertool.options.align import AlignOptions
from mertool.runs import Run, Sources, cache_key, find_reusable_run, new_run
from mertool.significance import known_speakers
from mertool.store import ClipFeatures, Failure, FeatureStore, StoreWriter, check_store
from mertool.targets import Classes


def align(
    audio: Path,
    video: Path,
    output: Path,
    *,
    aligned: Path,
    manifest: Manifest | None,
    options: AlignOptions,
    progress: Callable[[int, int], None],
) -> tuple[Run, bool]:
    """Train an aligner on the clips that both stores hold, and write the aligned store of all video clips.

    `audio` is a pooled store, `video` a frame store of one layer. Returns the run, and True if a run of the same inputs
    and options was found at `output` and nothing was trained. Raises MertoolError if the stores do not fit.
    """
    started = time.time()
    inputs = [audio, video, *([manifest.source] if manifest else [])]
    check_writable(aligned, *inputs)
    device = resolve_device(options.device)
    with FeatureStore(audio) as audio_store, FeatureStore(video) as video_store:
        _check_stores(audio_store, video_store, aligned)
        labelled = _read_labelled_clips(manifest, video_store, options) if manifest else None
        key = _run_key(audio_store, video_store, manifest=manifest, options=options)
        run = find_reusable_run(output, "align", key=key, options=options, inputs=inputs)
        reused = run is not None
        # Also for a reused run: of several processes only the main one writes the aligned store.
        accelerator = make_accelerator(device, torch.float32)
        if not reused:
            clips = common_clips(audio_store, video_store)
            plan = plan_alignment(
                clips,
                labelled,
                test_clips={clip.clip for clip in manifest.clips if clip.split == "test"} if manifest else (),
                seed=options.seed,
            )
            data = _load_data(audio_store, video_store, clips, plan=plan, options=options)
            checkpoints = _open_checkpoints(output, key, plan, accelerator)
            aligners, history = _train_all(
                data, plan, options=options, accelerator=accelerator, checkpoints=checkpoints, progress=progress
            )
            metrics = _evaluate(
                aligners.final, data, history, accelerator=accelerator, manifest=manifest, seed=options.seed
            )
            if accelerator.is_main_process:
                if labelled:
                    examples, folds = labelled
                    metrics["probe"] = _probe(aligners, video_store, examples=examples, folds=folds, options=options)
                    metrics["probe"]["aligners"] = len(aligners.folds)
                _write_run(
                    output,
                    aligners,
                    metrics,
                    key=key,
                    data=data,
                    audio_store=audio_store,
                    labelled_clips=labelled[0].clips if labelled else (),
                    manifest=manifest,
                    options=options,
                    started=started,
                )
                for checkpoint in checkpoints.values():
                    checkpoint.remove()
        accelerator.wait_for_everyone()  # the other processes read the run that the main one has written
        run = run or Run.read(output, "align")
        if accelerator.is_main_process and not (reused and _is_fresh(aligned, run, video_store)):
            _write_aligned_store(aligned, run, video_store, device=accelerator.device)
        accelerator.wait_for_everyone()
    return run, reused


def _check_stores(audio_store: FeatureStore, video_store: FeatureStore, aligned: Path) -> None:
    """Raise one error for all faults of the stores, before the long work."""
    faults = []
    if audio_store.recipe.modality != "audio" or not audio_store.pooled:
        faults.append(f"--audio {audio_store.path}: a pooled store of `extract audio` is needed")
    if video_store.recipe.modality != "video" or video_store.pooled:
        faults.append(f"--video {video_store.path}: frames are needed, from `extract video --pool none`")
    elif len(video_store.layers) != 1:
        faults.append(
            f"--video {video_store.path} holds {len(video_store.layers)} layers: extract one, with --layers last"
        )
    if aligned.exists():
        # With overwrite, because the aligned store of another run may be replaced.
        check_store(aligned, video_store.recipe, overwrite=True)
        with FeatureStore(aligned) as existing:
            if existing.recipe.aligner is None:
                faults.append(f"--aligned {aligned} holds features that were not aligned: give another path")
    if faults:
        raise combine_errors("align", faults) if len(faults) > 1 else MertoolError(faults[0])
    common_clips(audio_store, video_store)


def _read_labelled_clips(
    manifest: Manifest, video_store: FeatureStore, options: AlignOptions
) -> tuple[LabelledClips, Folds]:
    """Return the labelled clips that have frames, and the folds of the probe; faults are found before training."""
    examples = LabelledClips.from_manifest(manifest, Classes(options.classes))
    examples = examples.select(examples.present_in(video_store))
    folds = probe_folds(examples, options.seed)
    warn_of_rare_classes(examples, [folds], options.classes)
    return examples, folds


def _run_key(
    audio_store: FeatureStore, video_store: FeatureStore, *, manifest: Manifest | None, options: AlignOptions
) -> str:
    # Without labels the class names change nothing.
    excluded = () if manifest else ("classes",)
    return cache_key(
        "align",
        {name: value for name, value in options.affecting_result().items() if name not in excluded},
        {
            "audio": [audio_store.fingerprint, audio_store.digests()],
            "video": [video_store.fingerprint, video_store.digests()],
            "manifest": manifest.digest() if manifest else None,
        },
    )


def _load_data(
    audio_store: FeatureStore,
    video_store: FeatureStore,
    clips: list[str],
    *,
    plan: AlignmentPlan,
    options: AlignOptions,
) -> AlignmentData:
    """Return the clips in both stores: frames to be streamed, targets in memory, and the split of the final aligner."""
    # The targets of all aligners are standardised alike, so that their vectors are in one space.
    targets = load_acoustic_targets(audio_store, clips, plan.final.train)
    return AlignmentData(
        stream=FrameStream(video_store, video_store.rows(clips), MAX_FRAMES),
        targets=targets,
        split=plan.final,
        false_negatives=_false_negatives(targets, plan.final, options),
    )


def _false_negatives(targets: np.ndarray, split: AlignmentSplit, options: AlignOptions) -> FalseNegativeFilter:
    # A loss without negatives does not use the mask, so nothing is estimated for it.
    kind = options.false_negatives or ("threshold" if losses.load(options.loss).NEGATIVES else "none")
    return FalseNegativeFilter.fit(kind, targets, train=split.train, seed=options.seed)


def _open_checkpoints(output: Path, key: str, plan: AlignmentPlan, accelerator: Accelerator) -> dict[str, Checkpoint]:
    """Return the checkpoint of each aligner, beside the run; those of other options or clips are removed."""
    run = output.absolute()
    paths = {name: run.with_name(f".{run.name}.unfinished-{key[-16:]}-{name}.safetensors") for name in plan.splits}
    if accelerator.is_main_process:
        for file in run.parent.glob(f".{glob.escape(run.name)}.unfinished-*.safetensors"):
            if file not in paths.values():
                file.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return {name: Checkpoint(path, is_writer=accelerator.is_main_process) for name, path in paths.items()}


def _train_all(
    data: AlignmentData,
    plan: AlignmentPlan,
    *,
    options: AlignOptions,
    accelerator: Accelerator,
    checkpoints: Mapping[str, Checkpoint],
    progress: Callable[[int, int], None],
) -> tuple[CrossFittedAligner, AlignmentHistory]:
    """Train the aligners of the plan one after the other; return them, and the history of the final one."""
    steps = {name: math.prod(plan_epochs(len(split.train), options)) for name, split in plan.splits.items()}
    aligners: dict[str, Aligner] = {}
    n_done = 0
    for name, split in plan.splits.items():
        with seeded_torch(options.seed):
            aligner = Aligner(
                channels=data.stream.store.channels,
                width=options.width,
                blocks=options.blocks,
                acoustic=data.targets.shape[1],
                dropout=options.dropout,
            )
        own = data
        if name != FINAL:
            own = replace(data, split=split, false_negatives=_false_negatives(data.targets, split, options))
        history = train(
            aligner,
            losses.load(options.loss).build(),
            own,
            options=options,
            accelerator=accelerator,
            checkpoint=checkpoints[name],
            progress=lambda step, _, n_done=n_done: progress(n_done + step, sum(steps.values())),  # type: ignore[misc]
        )
        aligners[name] = aligner.eval()
        n_done += steps[name]
    final = aligners.pop(FINAL)
    return CrossFittedAligner(final=final, folds=aligners, aligner_of_clip=plan.aligner_of_clip), history


def _evaluate(
    aligner: Aligner,
    data: AlignmentData,
    history: AlignmentHistory,
    *,
    accelerator: Accelerator,
    manifest: Manifest | None,
    seed: int,
) -> dict[str, Any]:
    """Return the metrics of a trained aligner; every process must call it, because encoding is shared."""
    held_out, cpu = data.split.held_out, torch.device("cpu")
    if len(held_out) > MAX_HELD_OUT_CLIPS:
        chosen = np.random.default_rng(seed).choice(held_out, MAX_HELD_OUT_CLIPS, replace=False)
        held_out = np.sort(chosen)
    visual = encode_distributed(aligner, data.stream, held_out, accelerator=accelerator)
    groups = None
    if manifest:
        speakers, store = manifest.speakers(), data.stream.store
        groups = known_speakers([speakers.get(store.ids[row]) for row in data.stream.store_rows[held_out]])
    return {
        "train_clips": len(data.split.train),
        "development_clips": len(data.split.development),
        "held_out": evaluate_alignment(visual.to(cpu), data.acoustic(held_out, cpu), seed=seed, groups=groups),
        "loss": history.loss,
        "development_loss": history.development_loss,
        "best_epoch": history.best_epoch,
        "false_negatives": data.false_negatives.to_json(),
    }


def _probe(
    aligners: CrossFittedAligner,
    video_store: FeatureStore,
    *,
    examples: LabelledClips,
    folds: Folds,
    options: AlignOptions,
) -> dict[str, Any]:
    """Return what alignment gains for a linear probe of the labelled clips."""
    device = next(aligners.final.parameters()).device
    store_rows = video_store.rows(examples.clips)
    order = np.argsort(store_rows)  # a stream reads clips in the order of the store
    rows = np.arange(len(examples))
    aligned = np.zeros((len(examples), aligners.final.sizes["acoustic"]), np.float32)
    stream = FrameStream(video_store, store_rows[order], MAX_FRAMES)
    for batch_rows, vectors in _encode_by_own_aligner(aligners, stream, rows, device=device):
        aligned[order[batch_rows]] = vectors
    unaligned = np.zeros((len(examples), video_store.channels), np.float32)
    with FrameStream(video_store, store_rows[order], max_frames=None).in_order(rows) as batches:
        for batch in batches:
            unaligned[order[batch.rows]] = [frames.astype(np.float32).mean(0) for frames in batch.frames]
    return probe_gain(unaligned, aligned, examples, folds=folds, classes=len(options.classes))


def _encode_by_own_aligner(
    aligners: CrossFittedAligner, stream: FrameStream, rows: np.ndarray, *, device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows (B,) and vectors (B, A) of the clips `rows`, ascending, each by the aligner that is meant for it."""
    names = np.array([aligners.name_of(stream.store.ids[stream.store_rows[row]]) for row in rows])
    for name in np.unique(names):
        for batch_rows, vectors in encode_stream(aligners.aligner(name), stream, rows[names == name], device=device):
            yield batch_rows, vectors.cpu().numpy()


def _write_run(
    output: Path,
    aligners: CrossFittedAligner,
    metrics: dict[str, Any],
    *,
    key: str,
    data: AlignmentData,
    audio_store: FeatureStore,
    labelled_clips: Sequence[str],
    manifest: Manifest | None,
    options: AlignOptions,
    started: float,
) -> None:
    """Put the run in place: weights, metrics, plots, and the clips that were not trained on."""
    video_store = data.stream.store
    clips = [video_store.ids[row] for row in data.stream.store_rows]
    without_audio = [clip for clip in labelled_clips if clip not in audio_store.index]
    facts = {
        "seed": options.seed,
        "audio": audio_store.recipe.to_json(),
        "video": video_store.recipe.to_json(),
        "origin": video_store.provenance,
        "sizes": aligners.final.sizes,
        "aligner_of_clip": dict(aligners.aligner_of_clip),
        "held_out_clips": [*(clips[row] for row in data.split.held_out), *without_audio],
        "development_clips": [clips[row] for row in data.split.development],
    }
    sources: Sources = {
        "manifest": manifest.source if manifest else None,
        "audio": audio_store.path,
        "video": video_store.path,
    }
    with new_run(output, "align", key=key, options=asdict(options), sources=sources, started=started, **facts) as draft:
        draft.save_tensors("aligner", aligners.final.state_dict())
        for name, aligner in aligners.folds.items():
            draft.save_tensors(f"{FOLDS}/{name}", aligner.state_dict())
        draft.metrics.update(metrics)
        _draw_plots(draft.folder, metrics, options)


def _draw_plots(folder: Path, metrics: dict[str, Any], options: AlignOptions) -> None:
    from mertool.plots import plot_epoch_curves, plot_retrieval_recall

    title = "Video frames to the audio of the same clip"
    label = f"{options.loss} (grows with the size of the batch)"
    losses_by_epoch = {"training": metrics["loss"], "development": metrics["development_loss"]}
    plot_epoch_curves(folder / "loss", losses_by_epoch, ylabel=label, title=title)
    scores = metrics["held_out"]
    plot_retrieval_recall(folder / "recall", scores, f"{scores['clips']} held-out clips")


def _aligned_recipe(run: Run, video_store: FeatureStore) -> Recipe:
    """Return the recipe of `extract video --aligner RUN`, so that both ways to the features make one store."""
    return Recipe.from_json({**video_store.recipe.to_json(), "pool": "mean", "aligner": run.digest()})


def _is_fresh(aligned: Path, run: Run, video_store: FeatureStore) -> bool:
    """Return True if the aligned store is by this run, from the same media."""
    if not aligned.exists():
        return False
    with FeatureStore(aligned) as store:
        fingerprint = _aligned_recipe(run, video_store).fingerprint
        return store.fingerprint == fingerprint and store.digests() == video_store.digests()


def _write_aligned_store(aligned: Path, run: Run, video_store: FeatureStore, *, device: torch.device) -> None:
    """Encode every clip that has frames; a killed command resumes after the last part that was written."""
    aligners = CrossFittedAligner.load(run.folder, device)
    signatures, stats = video_store.signatures(), video_store.media_stats_of_clips()
    origin = {**video_store.provenance, "aligner": str(run.folder.absolute())}
    with StoreWriter(aligned, _aligned_recipe(run, video_store), origin, overwrite=True) as writer:
        pending = [row for row, clip in enumerate(video_store.ids) if writer.done.get(clip) != signatures[clip]]
        stream = FrameStream(video_store, np.arange(len(video_store)), MAX_FRAMES)
        for rows, vectors in _encode_by_own_aligner(aligners, stream, np.array(pending, np.int64), device=device):
            for row, vector in zip(rows.tolist(), vectors, strict=True):
                clip = video_store.ids[row]
                if np.isfinite(vector).all():
                    writer.add(ClipFeatures(clip, signatures[clip], vector[None], **stats[row].to_dict()))
                else:
                    writer.fail(Failure.of(clip, signatures[clip], ClipError("not_finite")))
        for failure in video_store.failures():
            writer.fail(failure)
        writer.finish(video_store.ids)

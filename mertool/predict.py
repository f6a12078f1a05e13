"""Stage `predict`: raw clips in, labels out, with a bundle of `fuse` alone."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mertool import encoders
from mertool.bundle import Bundle
from mertool.bundle.clip_features import ClipFeatureExtractor
from mertool.bundle.scoring import score_blocks
from mertool.devices import resolve_device
from mertool.errors import MISSING_MODALITY_REASONS, MertoolError
from mertool.extraction.decoding import DecoderLimits
from mertool.extraction.progress import ProgressCallback, no_progress
from mertool.files import check_writable, write_atomic
from mertool.interop.submission import check_candidates, read_candidates, write_submission
from mertool.manifest import Clip, Manifest
from mertool.options.predict import SUBMISSIONS, PredictOptions
from mertool.predictions import (
    Prediction,
    PredictionsWriter,
    check_suffix,
    feature_cache_folder,
    read_predictions,
)
from mertool.store import Failure, FeatureStore


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """The result that the command reports.

    output: the predictions; `features` is the folder of cached features, `failures` the CSV of clips that failed,
    `submission` the file for a challenge.
    clips: number of clips to predict; `predicted` of them have a row, `unreadable` have no modality at all.
    modalities: number of predicted clips by the modalities that are present, as `audio+text`.
    missing: number of predicted clips by the modality that they lack and the reason, as `audio: silent`.
    majority_class, guessed: the most frequent class in training, and the candidates of a submission that have this
    label because no modality of them can be read.
    """

    output: str
    features: str
    failures: str | None
    submission: str | None
    clips: int
    predicted: int
    modalities: dict[str, int]
    missing: dict[str, int]
    unreadable: int
    majority_class: str | None = None
    guessed: list[str] = field(default_factory=list)

    @property
    def failed_share(self) -> float:
        """Share of the clips without a row."""
        return self.unreadable / max(1, self.clips)


@dataclass
class _PredictedClips:
    """Labels, or numbers as text, by clip, and how many clips have and lack which modalities."""

    labels: dict[str, str] = field(default_factory=dict)
    modalities: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)


def predict(
    bundle: Path,
    manifest: Manifest,
    output: Path,
    *,
    options: PredictOptions | None = None,
    inputs: Sequence[Path] = (),
    on_progress: ProgressCallback = no_progress,
) -> PredictResult:
    """Predict every clip that has at least one modality; the others are listed in NAME.failures.csv.

    Rows are in the order of the manifest. Features are cached in stores beside the output, so that a second run is
    quick and a killed one resumes. With `submission` only its candidates are predicted, and their labels are also
    written to NAME.mer2024.csv. Outputs never replace `inputs`, which are the files that the manifest was read from.
    """
    options = options or PredictOptions()
    check_suffix(output)
    failures = output.with_name(f"{output.stem}.failures.csv")
    submission = output.with_name(f"{output.stem}.{options.submission}.csv") if options.submission else None
    for path in (output, failures, *([submission] if submission else [])):
        media = (path for clip in manifest.clips for path in clip.files)
        check_writable(path, bundle, options.candidates, options.valence, manifest.source, *inputs, *media)
    opened = Bundle.open(bundle)
    candidates, valence = _read_candidates(options, manifest, opened), _read_valence(options)
    manifest = manifest.subset(candidates) if candidates else manifest
    extractor = ClipFeatureExtractor(
        bundle=opened,
        folder=feature_cache_folder(output),
        device=resolve_device(options.device),
        limits=DecoderLimits(options.workers, options.clip_timeout),
        asr=_find_recognition(opened, options),
        warn_without_vad=options.vad,
    )
    paths = extractor.extract(opened.feature_specs, manifest, on_progress)
    with ExitStack() as stack:
        stores = [stack.enter_context(FeatureStore(path)) for path in paths]
        predicted = _write_predictions(output, manifest, extractor=extractor, stores=stores)
        has_failures = _write_failures(failures, manifest, stores)
    guessed = [clip for clip in candidates if clip not in predicted.labels]
    if submission:
        labels = {clip: predicted.labels.get(clip, str(opened.majority_class)) for clip in candidates}
        write_submission(submission, labels, SUBMISSIONS[str(options.submission)].split(","), valence=valence)
    return PredictResult(
        output=str(output),
        features=str(extractor.folder),
        failures=str(failures) if has_failures else None,
        submission=str(submission) if submission else None,
        clips=len(manifest),
        predicted=len(predicted.labels),
        modalities=dict(sorted(predicted.modalities.items())),
        missing=dict(sorted(predicted.missing.items())),
        unreadable=len(manifest) - len(predicted.labels),
        majority_class=opened.majority_class if guessed else None,
        guessed=guessed,
    )


def _read_candidates(options: PredictOptions, manifest: Manifest, bundle: Bundle) -> list[str]:
    """Names of the clips to submit, in the order of the list; all faults are reported before the work."""
    if not (options.submission and options.candidates):
        return []
    if not bundle.classes:
        raise MertoolError(
            f"--submission: {bundle.run.folder} predicts {bundle.target.name}, a submission holds emotions: give the "
            "bundle of a fusion of emotion"
        )
    names = read_candidates(options.candidates)
    clips = [clip.clip for clip in manifest.clips]
    check_candidates(options.candidates, names, clips, source=manifest.source, classes=bundle.classes)
    return names


def _read_valence(options: PredictOptions) -> dict[str, float]:
    """Predicted valence by clip id; empty without `--valence`."""
    if options.valence is None:
        return {}
    predictions = read_predictions(options.valence, "valence")
    return dict(zip(predictions.clips, predictions.outputs[:, 0].tolist(), strict=True))


def _find_recognition(bundle: Bundle, options: PredictOptions) -> encoders.SpeechRecognition | None:
    """The speech recogniser of `--asr`; one that the bundle would not use is an error."""
    if options.asr is None:
        return None
    texts = [spec for spec in bundle.feature_specs if spec.modality == "text"]
    if not texts:
        raise MertoolError(f"--asr: {bundle.run.folder} uses no text; leave it out")
    if all(spec.recogniser for spec in texts):
        raise MertoolError(f"--asr: {bundle.run.folder} has a speech recogniser of its own, and uses it; leave it out")
    return encoders.resolve_recognition(
        options.asr, language=options.language, chinese=options.chinese, vad=options.vad
    )


def _write_predictions(
    output: Path, manifest: Manifest, *, extractor: ClipFeatureExtractor, stores: Sequence[FeatureStore]
) -> _PredictedClips:
    """Write a row for each clip that has a modality."""
    bundle, predicted = extractor.bundle, _PredictedClips()
    path_of = {clip.clip: _path_of(clip) for clip in manifest.clips}
    reasons = _reasons_by_modality(stores)
    with PredictionsWriter(output, bundle.target) as writer:
        for block, logits, present in score_blocks(bundle, stores, list(path_of), device=extractor.device):
            for clip, row, exists in zip(block, bundle.outputs(logits).numpy(), present, strict=True):
                modalities = _modalities_of(bundle, exists)
                absent = [modality for modality in reasons if modality not in modalities]
                missing = {modality: reasons[modality][clip] for modality in absent if clip in reasons[modality]}
                writer.add(
                    Prediction(clip=clip, path=path_of[clip], outputs=row, modalities=modalities, missing=missing)
                )
                predicted.labels[clip] = bundle.target.cells(row)[0]
                predicted.modalities["+".join(modalities)] += 1
                predicted.missing.update(f"{modality}: {reason}" for modality, reason in missing.items())
    return predicted


def _path_of(clip: Clip) -> str:
    """The file of a clip as its source names it; empty for a text alone."""
    return str(clip.files[0]) if clip.files else ""


def _modalities_of(bundle: Bundle, present: np.ndarray) -> tuple[str, ...]:
    modalities = [spec.modality for spec, exists in zip(bundle.feature_specs, present, strict=True) if exists]
    return tuple(dict.fromkeys(modalities))


def _reasons_by_modality(stores: Sequence[FeatureStore]) -> dict[str, dict[str, str]]:
    """Return, for each modality, the reason of each clip without its features; of several stores the first counts."""
    reasons: dict[str, dict[str, str]] = {}
    for store in stores:
        of_modality = reasons.setdefault(store.recipe.modality, {})
        for failure in store.failures():
            of_modality.setdefault(failure.clip, failure.reason)
    return reasons


def _write_failures(path: Path, manifest: Manifest, stores: Sequence[FeatureStore]) -> bool:
    """Write every failure of clips without a row; of clips with one only failures, not modalities that they lack.

    Returns whether there is any; a file of an earlier run does not stay.
    """
    clips = {clip.clip for clip in manifest.clips}
    predicted = {clip for store in stores for clip in store.index}
    rows = {
        (failure.clip, store.recipe.modality): replace(failure, stage=store.recipe.modality)
        for store in stores
        for failure in store.failures()
        if failure.clip in clips and (failure.reason not in MISSING_MODALITY_REASONS or failure.clip not in predicted)
    }
    if not rows:
        path.unlink(missing_ok=True)
        return False
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["clip", "modality", "reason", "message"])
    writer.writerows(_cells(failure) for failure in rows.values())
    write_atomic(path, buffer.getvalue())
    return True


def _cells(failure: Failure) -> list[str]:
    return [failure.clip, failure.stage, failure.reason, failure.message]

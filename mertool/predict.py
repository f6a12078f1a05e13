"""Stage `predict`: raw clips in, labels out, with a bundle of `fuse` alone."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
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
from mertool.manifest import Manifest
from mertool.options.predict import PredictOptions
from mertool.predictions import PredictionsWriter, feature_cache_folder
from mertool.store import Failure, FeatureStore

SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """The result that the command reports.

    output: the predictions; `features` is the folder of cached features, `failures` the CSV of clips that failed,
    `submission` the file for a challenge.
    clips: number of clips in the manifest; `predicted` of them have a row, `unreadable` have no modality at all.
    modalities: number of predicted clips by the modalities that are present, as `audio+text`.
    """

    output: str
    features: str
    failures: str | None
    submission: str | None
    clips: int
    predicted: int
    modalities: dict[str, int]
    unreadable: int

    @property
    def failed_share(self) -> float:
        """Share of the clips without a row."""
        return self.unreadable / max(1, self.clips)


def predict(
    bundle: Path,
    manifest: Manifest,
    output: Path,
    *,
    options: PredictOptions | None = None,
    on_progress: ProgressCallback = no_progress,
) -> PredictResult:
    """Predict every clip that has at least one modality; the others are listed in NAME.failures.csv.

    Rows are in the order of the manifest. Features are cached in stores beside the output, so that a second run is
    quick and a killed one resumes. With `submission` the labels are also written in that form, to NAME.mer2024.csv.
    """
    options = options or PredictOptions()
    check_writable(output, manifest.source, options.candidates)
    if output.suffix not in SUFFIXES:
        raise MertoolError(f"-o {output}: give a name that ends in {' or '.join(SUFFIXES)}")
    submission = output.with_name(f"{output.stem}.{options.submission}.csv") if options.submission else None
    if submission:
        submission.unlink(missing_ok=True)  # one of an earlier run would be taken for this run's
    opened = Bundle.open(bundle)
    candidates = _read_candidates(options, manifest, opened)
    extractor = ClipFeatureExtractor(
        bundle=opened,
        folder=feature_cache_folder(output),
        device=resolve_device(options.device),
        limits=DecoderLimits(options.workers, options.clip_timeout),
        asr=_find_recogniser(opened, options),
    )
    paths = extractor.extract(opened.feature_specs, manifest, on_progress)
    with ExitStack() as stack:
        stores = [stack.enter_context(FeatureStore(path)) for path in paths]
        labels, counts = _write_predictions(output, manifest, extractor=extractor, stores=stores)
        failures = _write_failures(output, manifest, stores)
    if submission:
        write_submission(submission, candidates, labels, reasons=failures or output)
    return PredictResult(
        output=str(output),
        features=str(extractor.folder),
        failures=str(failures) if failures else None,
        submission=str(submission) if submission else None,
        clips=len(manifest),
        predicted=len(labels),
        modalities=dict(sorted(counts.items())),
        unreadable=len(manifest) - len(labels),
    )


def _read_candidates(options: PredictOptions, manifest: Manifest, bundle: Bundle) -> list[str]:
    """Names of the clips to submit, in the order of the list; all faults are reported before the work."""
    if not (options.submission and options.candidates):
        return []
    names = read_candidates(options.candidates)
    clips = [clip.clip for clip in manifest.clips]
    check_candidates(options.candidates, names, clips, source=manifest.source, classes=bundle.classes)
    return names


def _find_recogniser(bundle: Bundle, options: PredictOptions) -> encoders.CheckpointRef | None:
    """The speech recogniser of `--asr`; one that the bundle would not use is an error."""
    if options.asr is None:
        return None
    texts = [spec for spec in bundle.feature_specs if spec.modality == "text"]
    if not texts:
        raise MertoolError(f"--asr: {bundle.run.folder} uses no text; leave it out")
    if all(spec.recogniser for spec in texts):
        raise MertoolError(f"--asr: {bundle.run.folder} has a speech recogniser of its own, and uses it; leave it out")
    return encoders.resolve_recogniser(options.asr)


def _write_predictions(
    output: Path, manifest: Manifest, *, extractor: ClipFeatureExtractor, stores: Sequence[FeatureStore]
) -> tuple[dict[str, str], Counter[str]]:
    """Write the rows; return the label of each predicted clip, and numbers of clips by modalities present."""
    bundle = extractor.bundle
    labels: dict[str, str] = {}
    counts: Counter[str] = Counter()
    clips = [clip.clip for clip in manifest.clips]
    with PredictionsWriter(output, bundle.classes) as writer:
        for block, logits, present in score_blocks(bundle, stores, clips, device=extractor.device):
            probabilities = bundle.probabilities(logits).numpy()
            modalities = [_modalities_of(bundle, row) for row in present]
            writer.add(block, probabilities, modalities)
            counts.update("+".join(names) for names in modalities)
            best = probabilities.argmax(axis=1)
            labels.update((clip, bundle.classes[index]) for clip, index in zip(block, best, strict=True))
    return labels, counts


def _modalities_of(bundle: Bundle, present: np.ndarray) -> tuple[str, ...]:
    modalities = [spec.modality for spec, exists in zip(bundle.feature_specs, present, strict=True) if exists]
    return tuple(dict.fromkeys(modalities))


def _write_failures(output: Path, manifest: Manifest, stores: Sequence[FeatureStore]) -> Path | None:
    """Write every failure of clips without a row; of clips with one only failures, not modalities that they lack."""
    path = output.with_name(output.stem + ".failures.csv")
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
        return None
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["clip", "modality", "reason", "message"])
    writer.writerows(_cells(failure) for failure in rows.values())
    write_atomic(path, buffer.getvalue())
    return path


def _cells(failure: Failure) -> list[str]:
    return [failure.clip, failure.stage, failure.reason, failure.message]

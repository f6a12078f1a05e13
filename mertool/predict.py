"""Stage `predict`: raw clips in, labels out, with a bundle of `fuse` alone."""

import csv
import io
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from mertool import encoders
from mertool.bundle import Bundle
from mertool.bundle.extraction import Extraction, extract_parts, score_blocks
from mertool.devices import resolve_device
from mertool.errors import MISSING_MODALITY_REASONS, MertoolError
from mertool.extraction.decoding import DecoderLimits
from mertool.extraction.pipeline import Progress
from mertool.files import check_writable, write_atomic
from mertool.interop.mertools import check_candidates, read_candidates, write_submission
from mertool.manifest import Manifest
from mertool.options.predict import PredictOptions
from mertool.predictions import PredictionsWriter, feature_cache_folder
from mertool.store import Failure, FeatureStore

SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True)
class PredictResult:
    """Numbers of clips: scored, by modalities present, and without any (with the reasons)."""

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
    bundle: Path, manifest: Manifest, output: Path, options: PredictOptions, progress: Progress
) -> PredictResult:
    """Score every clip that has at least one modality; the others are listed in NAME.failures.csv.

    Rows stand in the manifest's order. Features are cached in stores beside the output, so that a second run is
    quick and a killed one resumes. With `submission` the labels are also written in that form, to NAME.mer2024.csv.
    """
    check_writable(output, manifest.source, options.candidates)
    if output.suffix not in SUFFIXES:
        raise MertoolError(f"-o {output}: give a name that ends in {' or '.join(SUFFIXES)}")
    submission = output.with_name(f"{output.stem}.{options.submission}.csv") if options.submission else None
    if submission:
        submission.unlink(missing_ok=True)  # one of an earlier run is not what this one makes
    opened = Bundle.open(bundle)
    candidates = _candidates(options, manifest, opened)
    how = Extraction(
        resolve_device(options.device),
        DecoderLimits(options.workers, options.clip_timeout),
        _recogniser(opened, options),
    )
    cache = feature_cache_folder(output)
    paths = extract_parts(opened, opened.parts, manifest, cache, how, progress)
    with ExitStack() as stack:
        stores = [stack.enter_context(FeatureStore(path)) for path in paths]
        counts, labels = _score(opened, manifest, stores, output, how, bool(candidates))
        reasons = _write_failures(output, manifest, stores)
    if submission:
        write_submission(submission, candidates, labels, reasons or output)
    predicted = sum(counts.values())
    return PredictResult(
        str(output),
        str(cache),
        str(reasons) if reasons else None,
        str(submission) if submission else None,
        len(manifest),
        predicted,
        dict(sorted(counts.items())),
        len(manifest) - predicted,
    )


def _candidates(options: PredictOptions, manifest: Manifest, bundle: Bundle) -> list[str]:
    """Names of the clips to submit, in the list's order; all that is wrong with them is said before the work."""
    if not (options.submission and options.candidates):
        return []
    names = read_candidates(options.candidates)
    check_candidates(options.candidates, names, [clip.clip for clip in manifest.clips], manifest.source, bundle.classes)
    return names


def _recogniser(bundle: Bundle, options: PredictOptions) -> encoders.CheckpointRef | None:
    """The speech recogniser of `--asr`; one that the bundle would not use is an error."""
    if options.asr is None:
        return None
    texts = [part for part in bundle.parts if part["modality"] == "text"]
    if not texts:
        raise MertoolError(f"--asr: {bundle.run.folder} uses no text; leave it out")
    if all("asr" in part["recipe"]["media"] for part in texts):
        raise MertoolError(f"--asr: {bundle.run.folder} has a speech recogniser of its own, and uses it; leave it out")
    return encoders.find_recogniser(options.asr)


def _score(
    bundle: Bundle, manifest: Manifest, stores: list[FeatureStore], output: Path, how: Extraction, keep: bool
) -> tuple[Counter[str], dict[str, str]]:
    """Write the rows; numbers of clips by modalities present and, if they are to be kept, all labels."""
    counts: Counter[str] = Counter()
    labels: dict[str, str] = {}
    with PredictionsWriter(output, bundle.classes) as writer:
        for clips, logits, present in score_blocks(bundle, stores, [clip.clip for clip in manifest.clips], how.device):
            probabilities = bundle.probabilities(logits).numpy()
            modalities = [_modalities(bundle, row) for row in present]
            writer.add(clips, probabilities, modalities)
            counts.update("+".join(names) for names in modalities)
            if keep:
                best = probabilities.argmax(axis=1)
                labels.update((clip, bundle.classes[index]) for clip, index in zip(clips, best, strict=True))
    return counts, labels


def _modalities(bundle: Bundle, present: list[bool]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part["modality"] for part, here in zip(bundle.parts, present, strict=True) if here))


def _write_failures(output: Path, manifest: Manifest, stores: list[FeatureStore]) -> Path | None:
    """Every failure of clips without a row, and real failures of the modalities of clips with one."""
    path = output.with_name(output.stem + ".failures.csv")
    wanted = {clip.clip for clip in manifest.clips}
    rows = {
        (failure.clip, store.recipe.modality): replace(failure, stage=store.recipe.modality)
        for store in stores
        for failure in store.failures()
        if failure.clip in wanted
        and (failure.reason not in MISSING_MODALITY_REASONS or not any(failure.clip in other.index for other in stores))
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

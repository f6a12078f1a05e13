"""Stage `extract`: clips in, a feature store out."""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mertool.devices import resolve_device
from mertool.errors import MISSING_MODALITY_REASONS, MertoolError
from mertool.extraction.driver import ExtractionSummary, extract_to_stores
from mertool.extraction.estimate import Estimate, estimate_extraction
from mertool.extraction.job import ExtractionJob
from mertool.extraction.job_builder import build_job, find_recognition
from mertool.extraction.progress import ProgressCallback, no_progress
from mertool.extraction.transcription import Transcriber
from mertool.extraction.transcripts import transcripts_beside
from mertool.manifest import Manifest
from mertool.options.extract import ExtractOptions
from mertool.runs import Run
from mertool.store import FeatureStore


@dataclass(frozen=True, kw_only=True)
class ExtractResult:
    """The result that the command reports.

    store: path of the store.
    clips: number of clips in the manifest; `extracted` of them got features now, `cached` had features in the store.
    features: number of clips of the manifest that have features.
    missing: numbers of clips that lack the modality, by reason code; `failed` numbers of clips that failed.
    layers, channels: of the store.
    truncated: inputs that were cut to the longest input of the encoder.
    noted: clips in whose media something was lost or disregarded; `store ls --media` tells what.
    media_seconds: duration of the media that was encoded now.
    seconds: where the time went (see extraction.progress.ExtractionStats).
    transcripts: the CSV of recognised speech, if any.
    faces: the store of face crops, if any; `frames` is the store of frames from the same pass, if any.
    out_of_fold: number of clips that adapters were trained on, whose features come from the one that did not see
    them; None without an adapter.
    worked: whether any clip was processed now.
    """

    store: str
    clips: int
    extracted: int
    cached: int
    features: int
    missing: dict[str, int]
    failed: dict[str, int]
    layers: int
    channels: int
    truncated: int
    noted: int
    media_seconds: float
    seconds: dict[str, float]
    transcripts: str | None
    faces: str | None
    frames: str | None
    out_of_fold: int | None
    worked: bool

    @property
    def failed_share(self) -> float:
        """Share of the clips that failed; clips that lack the modality did not fail."""
        return sum(self.failed.values()) / max(1, self.clips)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "failed_share": self.failed_share}


def extract(
    manifest: Manifest, output: Path, options: ExtractOptions, *, on_progress: ProgressCallback = no_progress
) -> ExtractResult:
    """Write features of every clip into the store `output`; clips that it has already are skipped."""
    manifest, job = build_job(manifest, output, options)
    if recognition := find_recognition(options):
        for target in job.targets:
            target.check()  # before hours of speech recognition
        transcriber = Transcriber(
            output=transcripts_beside(job.targets[0].path),
            recognition=recognition,
            device=resolve_device(options.device),
            limits=job.limits,
            warn_without_vad=options.vad,
        )
        transcribed = transcriber.transcribe(manifest, on_progress)
        manifest, job = transcribed.manifest, replace(job, missing_text=transcribed.reasons)
    summary = extract_to_stores(manifest, job, on_progress)
    return _make_result(manifest, job, summary, options=options)


def estimate(manifest: Manifest, output: Path, options: ExtractOptions) -> Estimate:
    """Return what `extract` would do and how long it would take, from a measured sample; nothing is written."""
    manifest, job = build_job(manifest, output, options)
    if options.asr and any(not (clip.text or "").strip() for clip in manifest.clips):
        raise MertoolError("--dry-run measures no speech recognition: leave out --asr for an estimate of the rest")
    return estimate_extraction(manifest, job)


def _make_result(
    manifest: Manifest, job: ExtractionJob, summary: ExtractionSummary, *, options: ExtractOptions
) -> ExtractResult:
    path, stats = job.targets[0].path, summary.stats
    counts = sorted(Counter(summary.reasons).items())
    transcripts = transcripts_beside(path)
    with FeatureStore(path) as store:
        return ExtractResult(
            store=str(path),
            clips=len(manifest),
            extracted=stats.extracted,
            cached=summary.cached,
            features=sum(clip.clip in store.index for clip in manifest.clips),
            missing={reason: count for reason, count in counts if reason in MISSING_MODALITY_REASONS},
            failed={reason: count for reason, count in counts if reason not in MISSING_MODALITY_REASONS},
            layers=max(1, len(store.layers)),
            channels=store.channels if len(store) else 0,
            truncated=stats.truncated,
            noted=sum(bool(clip_stats.note) for clip_stats in store.media_stats_of_clips()),
            media_seconds=round(stats.media_seconds, 3),
            seconds={
                name: round(getattr(stats, name), 3) for name in ("wall", "encode", "idle", "decode", "faces", "write")
            },
            transcripts=str(transcripts) if options.asr and transcripts.exists() else None,
            faces=str(job.faces) if job.faces else None,
            frames=str(job.targets[1].path) if options.frames else None,
            out_of_fold=_count_out_of_fold(manifest, options.adapter),
            worked=stats.done > 0,
        )


def _count_out_of_fold(manifest: Manifest, adapter: Path | None) -> int | None:
    if adapter is None:
        return None
    trained_on = Run.read(adapter, "finetune", "adapter_of_clip").info["adapter_of_clip"]
    return sum(clip.clip in trained_on for clip in manifest.clips)

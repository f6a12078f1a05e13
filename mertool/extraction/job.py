"""Filling one store: resume, plan, decode, encode, write, merge."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mertool.errors import MertoolError
from mertool.extraction import pipeline
from mertool.extraction.decoding import (
    FACE_MODULES,
    DecodeResult,
    DecoderLimits,
    DecoderPool,
    decode_audio,
    decode_faces,
    decode_text,
)
from mertool.extraction.face_crops import FaceCropCache
from mertool.extraction.plan import WorkItem, make_plan
from mertool.features import Recipe, faces_recipe
from mertool.manifest import Manifest
from mertool.store import PartWriter, StoreBusy, StoreWriter


@dataclass(frozen=True)
class ExtractionJob:
    """What is to be done with every clip; light, so that it can be sent to another machine.

    `load` makes the encoder (None for face crops, which are stored as they are); `faces` is a store of crops
    for video features, which is read and filled; `no_text` has reasons why clips have no transcript.
    `engine` is `local` or `ray`; with `ray` the work is done on the cluster at `ray_address`, or on a Ray of our own.
    """

    output: Path
    recipe: Recipe
    origin: dict[str, Any]
    load: Callable[[], pipeline.EncodeSpec | None]
    limits: DecoderLimits = field(default_factory=DecoderLimits)
    faces: Path | None = None
    no_text: dict[str, str] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    engine: str = "local"
    ray_address: str | None = None

    @property
    def faces_recipe(self) -> Recipe:
        return faces_recipe(self.recipe.media)


@dataclass(frozen=True)
class ExtractionSummary:
    """What was done, how many clips were cached, and the reason of every clip without features."""

    report: pipeline.ExtractionStats
    cached: int
    reasons: list[str]


class ExtractionWorker:
    """The encoder and the decoders of one process that does items of a job. Use as a context manager."""

    def __init__(self, job: ExtractionJob):
        self.job = job
        self._stack = ExitStack()

    def __enter__(self) -> "ExtractionWorker":
        modality = self.job.recipe.modality
        modules = FACE_MODULES if modality in ("faces", "video") else ("mertool.media",)
        self._decoders = self._stack.enter_context(
            DecoderPool(self.job.limits, modules, low_priority=self.job.device.type == "cpu")
        )
        if modality != "text":
            self._decoders.start()  # while the encoder loads
        self._work = self.job.load()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def do(
        self,
        items: list[WorkItem],
        writer: PartWriter,
        faces: PartWriter | None,
        progress: pipeline.Progress,
    ) -> pipeline.ExtractionStats:
        """Features of `items` into `writer`, crops that were not there into `faces`."""
        total = len(items)
        if self.job.faces is None:
            return pipeline.run(self._decoded(items), total, self._work, writer, progress)
        with FaceCropCache(self.job.faces, self.job.faces_recipe, faces) as crops:
            return pipeline.run(crops.read(items, self._decoders), total, self._work, writer, progress)

    def _decoded(self, items: Iterable[WorkItem]) -> Iterable[DecodeResult]:
        media = self.job.recipe.media
        if self.job.recipe.modality == "text":
            return decode_text(items, self.job.no_text)
        if self.job.recipe.modality == "audio":
            return self._decoders.read(items, decode_audio)
        return self._decoders.read(items, decode_faces, fps=media["fps"], max_frames=media["most_frames"])


def extract_to_store(
    manifest: Manifest, job: ExtractionJob, progress: pipeline.Progress, overwrite: bool = False
) -> ExtractionSummary:
    """Bring the job's store up to date with the manifest. Nothing is loaded if there is no work."""
    with StoreWriter(job.output, job.recipe, job.origin, overwrite) as writer:
        plan = make_plan(manifest, job.recipe.modality, writer.done, writer.failed)
        report = pipeline.ExtractionStats()
        if plan.todo:
            report = _do(list(plan.todo), manifest, job, writer, progress)
        writer.finish(clip.clip for clip in manifest.clips)
        failed = [writer.failed[clip.clip].reason for clip in manifest.clips if clip.clip in writer.failed]
        cached = sum(clip in writer.done for clip in plan.cached)
    return ExtractionSummary(report, cached, failed)


def _do(
    items: list[WorkItem], manifest: Manifest, job: ExtractionJob, writer: StoreWriter, progress: pipeline.Progress
) -> pipeline.ExtractionStats:
    with ExitStack() as stack:
        faces = stack.enter_context(_open_faces(job, items))
        if job.engine == "ray":
            from mertool.extraction.ray_backend import do_on_ray  # it brings sessions to Ray's workers

            report = do_on_ray(items, job, writer, faces, progress, job.ray_address)
        else:
            report = stack.enter_context(ExtractionWorker(job)).do(items, writer, faces, progress)
        if faces:
            faces.finish(clip.clip for clip in manifest.clips)
    return report


@contextmanager
def _open_faces(job: ExtractionJob, items: list[WorkItem]) -> Iterator[StoreWriter | None]:
    """A writer for crops; None where there are none to add, so that several runs may share a whole store."""
    if job.faces is None:
        yield None
        return
    with FaceCropCache(job.faces, job.faces_recipe, None) as crops:
        complete = crops.has_all(items)
    if complete:
        yield None
        return
    try:
        writer = StoreWriter(job.faces, job.faces_recipe, {})
    except StoreBusy as error:
        raise MertoolError(
            f"another extraction is writing the face crops {job.faces}: wait for it to end (this run then finds no "
            "face again), or give --faces OTHER.h5 or --no-keep-faces"
        ) from error
    with writer:
        writer.finish(())  # what a killed run left is joined, so that it can be read
        yield writer

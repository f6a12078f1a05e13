"""How long a job will take and what it will need, from a measured sample."""

import random
import shutil
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mertool.extraction.face_crops import FaceCropCache
from mertool.extraction.job import ExtractionJob, ExtractionWorker
from mertool.extraction.plan import make_plan
from mertool.manifest import Manifest
from mertool.store import ClipFeatures, Failure, PartWriter, StoreWriter, check_store, parts_folder

WARM_UP, SAMPLE = 4, 32  # clips
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """Clips in all, cached and to do; for those to do hours of media, bytes and seconds, scaled from a sample.

    `disk` is what the store will grow by, `faces_disk` what the store of crops `faces` will; at the end as much
    again is needed for a moment, while parts are joined. `seconds` leaves out loading the encoder.
    """

    store: str
    clips: int
    cached: int
    todo: int
    sample: int
    sample_failed: int
    media_hours: float
    disk: int
    faces: str | None
    faces_disk: int
    disk_free: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Scale(PartWriter):
    """Weighs features instead of writing them."""

    weight = 0

    def add(self, features: ClipFeatures) -> None:
        self.weight += features.values.size * self.dtype.itemsize

    def fail(self, failure: Failure) -> None:
        """A failure weighs nothing."""


def estimate_fill(manifest: Manifest, job: ExtractionJob, overwrite: bool = False) -> Estimate:
    """Measure some of the clips that are to do; the store is not touched."""
    check_store(job.output, job.recipe, overwrite)
    done: dict[str, str] = {}
    failed: dict[str, Failure] = {}
    if not overwrite and (job.output.exists() or parts_folder(job.output).exists()):
        with StoreWriter(job.output, job.recipe, job.origin) as writer:
            done, failed = writer.done, writer.failed
    plan = make_plan(manifest, job.recipe.modality, done, failed)
    todo = list(plan.todo)
    # Those whose crops are found already are quick, and there are none of them left when the others are done.
    if job.faces:
        with FaceCropCache(job.faces, job.faces_recipe, None) as crops:
            todo = [item for item in todo if not crops.knows(item)] or todo
    chosen = random.Random(SEED).sample(todo, min(len(todo), WARM_UP + SAMPLE))
    sample = chosen[WARM_UP:] or chosen
    scale, face_scale = _Scale(job.output, job.recipe, {}), _Scale(job.output, job.faces_recipe, {})
    seconds = media = 0.0
    bad = 0
    if sample:
        with ExtractionWorker(job) as session:
            session.do(chosen[:WARM_UP], _Scale(job.output, job.recipe, {}), None, _silent)
            report = session.do(sample, scale, face_scale, _silent)
        seconds, media, bad = report.wall, report.media_seconds, report.failed
    factor = len(plan.todo) / max(1, len(sample))
    folder = next(parent for parent in job.output.absolute().parents if parent.exists())
    return Estimate(
        str(job.output),
        len(manifest),
        len(plan.cached),
        len(plan.todo),
        len(sample),
        bad,
        round(factor * media / 3600, 4),
        int(np.ceil(factor * scale.weight)),
        str(job.faces) if job.faces else None,
        int(np.ceil(factor * face_scale.weight)),
        shutil.disk_usage(folder).free,
        round(factor * seconds, 1),
    )


def _silent(*_: object) -> None:
    """No progress is shown."""

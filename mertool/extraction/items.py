"""The work items of a job."""

from mertool.extraction.face_crops import imported_items
from mertool.extraction.job import ExtractionJob
from mertool.extraction.plan import WorkItem, list_items
from mertool.features import IMPORTED
from mertool.manifest import Manifest


def list_job_items(manifest: Manifest, job: ExtractionJob) -> list[WorkItem]:
    """Return a work item for each clip, to be read from its media, its text, or imported face crops."""
    if job.faces and IMPORTED in job.recipe.media:
        return imported_items(manifest, job.faces)
    return list_items(manifest, job.modality)

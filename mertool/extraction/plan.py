"""Planning: which clips have to be extracted, and which are known to a store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mertool.errors import TRANSIENT_REASONS, MertoolError
from mertool.files import digest_json
from mertool.manifest import Clip, Manifest
from mertool.store import Failure


@dataclass(frozen=True)
class WorkItem:
    """A clip to extract, and the digest of the media that will be read."""

    clip: Clip
    digest: str


@dataclass(frozen=True)
class Plan:
    """Work items that are pending, and the clips whose features or failures a store has."""

    pending: tuple[WorkItem, ...]
    cached: tuple[str, ...]


def list_items(manifest: Manifest, modality: str) -> list[WorkItem]:
    """Return a work item for each clip; raise MertoolError if not one of the media files exists."""
    if modality != "text":
        _check_files_exist(manifest, modality)
    return [WorkItem(clip, item_digest(clip, modality)) for clip in manifest.clips]


def _check_files_exist(manifest: Manifest, modality: str) -> None:
    paths = [path for clip in manifest.clips if (path := clip.media_path(modality)) is not None]
    if not paths:
        raise MertoolError(f"no clip of {manifest.source} has a media file: it holds texts alone, so extract text")
    if not any(path.is_file() for path in paths):
        raise MertoolError(
            f"none of the {len(paths)} files named in {manifest.source} exists (first: {paths[0]}): paths are relative "
            "to the manifest's folder"
        )


def make_plan(items: Sequence[WorkItem], done: Mapping[str, str], failed: Mapping[str, Failure]) -> Plan:
    """Compare clips with the clips of a store: `done` maps clip to media digest, `failed` clip to failure."""
    known = [is_known(item, done, failed) for item in items]
    return Plan(
        tuple(item for item, cached in zip(items, known, strict=True) if not cached),
        tuple(item.clip.clip for item, cached in zip(items, known, strict=True) if cached),
    )


def is_known(item: WorkItem, done: Mapping[str, str], failed: Mapping[str, Failure]) -> bool:
    """Return whether a store has the features of the unchanged clip, or a failure that a retry cannot mend."""
    failure = failed.get(item.clip.clip)
    if failure is not None:
        return failure.digest == item.digest and failure.reason not in TRANSIENT_REASONS
    return done.get(item.clip.clip) == item.digest


def item_digest(clip: Clip, modality: str) -> str:
    """Digest of what a modality reads of a clip; empty for a file that cannot be read."""
    if modality == "text":
        return digest_json(clip.text or "")[:32]
    try:
        return clip.digest(modality)
    except OSError:
        return ""

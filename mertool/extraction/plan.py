"""What is to do: clips whose media changed or that are not in the store, and the cached rest."""

from dataclasses import dataclass

from mertool.errors import TRANSIENT_REASONS, MertoolError
from mertool.files import digest_json
from mertool.manifest import Clip, Manifest
from mertool.store import Failure


@dataclass(frozen=True)
class WorkItem:
    """One clip to extract, and the digest of the media that will have been read."""

    clip: Clip
    digest: str


@dataclass(frozen=True)
class Plan:
    """Items to do, and the clips whose features or failures are there already."""

    todo: tuple[WorkItem, ...]
    cached: tuple[str, ...]


def make_plan(manifest: Manifest, modality: str, done: dict[str, str], failed: dict[str, Failure]) -> Plan:
    """Compare the clips with what a store holds; failures that may heal are tried again."""
    if modality != "text" and not any(clip.path.is_file() for clip in manifest.clips):
        raise MertoolError(
            f"none of the {len(manifest)} files named in {manifest.source} exists (first: "
            f"{manifest.clips[0].path}): paths are relative to the manifest's folder"
        )
    todo, cached = [], []
    for clip in manifest.clips:
        item = WorkItem(clip, item_digest(clip, modality))
        if is_known(item, done, failed):
            cached.append(clip.clip)
        else:
            todo.append(item)
    return Plan(tuple(todo), tuple(cached))


def is_known(item: WorkItem, done: dict[str, str], failed: dict[str, Failure]) -> bool:
    """Whether a store has features of the clip as it is now, or a reason why there are none that will stay."""
    failure = failed.get(item.clip.clip)
    if failure is not None:
        return failure.digest == item.digest and failure.reason not in TRANSIENT_REASONS
    return done.get(item.clip.clip) == item.digest


def item_digest(clip: Clip, modality: str) -> str:
    """Digest of what this modality reads of a clip; empty for a file that cannot be read."""
    if modality == "text":
        return digest_json(clip.text or "")[:32]
    try:
        return clip.digest()
    except OSError:
        return ""

"""Planning: which clips have to be extracted, and which are known to a store."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mertool.errors import TRANSIENT_REASONS, MertoolError
from mertool.files import digest_json
from mertool.manifest import Clip, Manifest
from mertool.store import Failure


@dataclass(frozen=True)
class WorkItem:
    """A clip to extract.

    clip: the clip.
    digest: of what is read of it: of its text or its imported face crops, or the signature of its media, which the
        decoder process adds when it has read the file.
    modality: which file of the clip is read.
    reads_media: whether it is read from a file of the clip; texts and imported face crops are not.
    """

    clip: Clip
    digest: str = ""
    modality: str = "audio"
    reads_media: bool = True


def list_items(manifest: Manifest, modality: str) -> list[WorkItem]:
    """Return a work item for each clip; raise MertoolError if not one of the media files exists."""
    if modality == "text":
        digests = (digest_json(clip.text or "")[:32] for clip in manifest.clips)
        return [WorkItem(*pair, modality, reads_media=False) for pair in zip(manifest.clips, digests, strict=True)]
    _check_files_exist(manifest, modality)
    return [WorkItem(clip, modality=modality) for clip in manifest.clips]


def _check_files_exist(manifest: Manifest, modality: str) -> None:
    paths = [path for clip in manifest.clips if (path := clip.media_path(modality)) is not None]
    if not paths:
        raise MertoolError(f"no clip of {manifest.source} has a media file: it holds texts alone, so extract text")
    if not any(path.is_file() for path in paths):
        raise MertoolError(
            f"none of the {len(paths)} files named in {manifest.source} exists (first: {paths[0]}): paths are relative "
            "to the manifest's folder"
        )


def pending_items(items: Iterable[WorkItem], done: Mapping[str, str], failed: Mapping[str, Failure]) -> list[WorkItem]:
    """Return the items that a store lacks: `done` maps its clips to media digests, `failed` clips to failures."""
    return [item for item in items if not is_known(item, done, failed)]


def is_known(item: WorkItem, done: Mapping[str, str], failed: Mapping[str, Failure]) -> bool:
    """Return True if a store has the features of the unchanged clip, or a failure that a retry cannot mend."""
    failure = failed.get(item.clip.clip)
    if failure is not None:
        return failure.reason not in TRANSIENT_REASONS and is_unchanged(item, failure.digest)
    digest = done.get(item.clip.clip)
    return digest is not None and is_unchanged(item, digest)


def is_unchanged(item: WorkItem, digest: str) -> bool:
    """Return True if what is read of a clip is what had this digest or signature, as a store keeps it."""
    if not item.reads_media:
        return digest == item.digest
    return item.clip.is_unchanged(digest, item.modality)


def audio_digest(clip: Clip) -> str:
    """Return the digest of a clip's audio; empty for a file that cannot be read."""
    try:
        return clip.digest("audio")
    except OSError:
        return ""

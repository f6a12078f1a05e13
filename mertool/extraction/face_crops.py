"""Face crops of clips: read from a store if they are there, otherwise detected in the video and added to it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from mertool.errors import ClipError, MertoolError
from mertool.extraction.decoding import DecodedClip, DecodeResult
from mertool.extraction.plan import WorkItem, is_known
from mertool.features import IMPORTED, Recipe
from mertool.manifest import Manifest
from mertool.store import ClipFeatures, Failure, FeatureStore, PartWriter, parts_folder


def crops_path_beside(output: Path, recipe: Recipe, shard: str = "") -> Path:
    """Return the default path of the face crops for a store of video features.

    It is `faces.h5` in the same folder, or a name with the recipe's fingerprint if that one is of another recipe.
    """
    default = output.with_name(f"faces{shard}.h5")
    if default == output or (default.exists() and _fingerprint(default) != recipe.fingerprint):
        return output.with_name(f"faces-{recipe.fingerprint[:8]}{shard}.h5")
    return default


def _fingerprint(path: Path) -> str:
    with FeatureStore(path) as store:
        return store.fingerprint


def imported_items(manifest: Manifest, faces: Path) -> list[WorkItem]:
    """Return a work item for each clip, whose digest is that of its imported face crops; no media are read."""
    with FeatureStore(faces) as store:
        signatures = store.signatures()
    return [WorkItem(clip, signatures.get(clip.clip, ""), "video", reads_media=False) for clip in manifest.clips]


class FaceCropCache:
    """A store of face crops, open for reading (if it exists) and, with a `writer`, for adding crops.

    Use as a context manager. Raises MertoolError if the store was made by another recipe.
    """

    def __init__(self, path: Path, recipe: Recipe, writer: PartWriter | None):
        self.path, self.recipe, self.writer = path, recipe, writer
        self._stack = ExitStack()

    def __enter__(self) -> "FaceCropCache":
        self._store = self._stack.enter_context(FeatureStore(self.path)) if self.path.exists() else None
        if self._store and self._store.fingerprint != self.recipe.fingerprint:
            self._stack.close()
            raise MertoolError(f"{self.path} holds face crops of other settings: give another --faces")
        self._failures = {failure.clip: failure for failure in self._store.failures()} if self._store else {}
        self._signatures = self._store.signatures() if self._store else {}
        self._media_stats = self._store.media_stats_of_clips() if self._store else []
        return self

    def __exit__(self, *_: object) -> None:
        self.writer = None  # a thread that reads ahead may still bring crops after the writer was closed
        self._stack.close()

    def read(
        self, items: Sequence[WorkItem], detect: Callable[[Iterable[WorkItem]], Iterable[DecodeResult]]
    ) -> Iterator[DecodeResult]:
        """Yield the crops of every item, those of the store first.

        `detect` decodes the other items and detects their faces; these crops are added to the store.
        """
        missing = []
        for item in items:
            if self.has(item):
                yield self._stored(item)
            else:
                missing.append(item)
        for item, result in detect(missing) if missing else ():
            self._add(item, result)
            yield item, result

    def has(self, item: WorkItem) -> bool:
        """Return True if the store has crops of the clip, or the reason why there are none."""
        # Imported crops are all there is: those of other clips cannot be detected with the same settings.
        return IMPORTED in self.recipe.media or is_known(item, self._signatures, self._failures)

    def has_all(self, items: Sequence[WorkItem]) -> bool:
        """Return True if no crop has to be detected and no part of a killed run waits to be merged."""
        return all(map(self.has, items)) and not parts_folder(self.path).exists()

    def _stored(self, item: WorkItem) -> DecodeResult:
        clip = item.clip.clip
        if failure := self._failures.get(clip):
            return replace(item, digest=failure.digest), ClipError(failure.reason, failure.message)
        assert self._store is not None
        if clip not in self._store.index:
            return item, ClipError("no_face", f"{self.path} has no imported face crops of the clip")
        stats = self._media_stats[self._store.index[clip]]
        crops = DecodedClip(np.asarray(self._store.frames(clip)), **stats.to_dict())
        return replace(item, digest=self._signatures[clip]), crops

    def _add(self, item: WorkItem, result: DecodedClip | ClipError) -> None:
        if self.writer is None:
            return
        clip = item.clip.clip
        if isinstance(result, ClipError):
            self.writer.fail(
                Failure(clip=clip, digest=item.digest, stage="decode", reason=result.reason, message=result.message)
            )
        else:
            self.writer.add(ClipFeatures(clip, item.digest, result.content, **result.to_dict()))

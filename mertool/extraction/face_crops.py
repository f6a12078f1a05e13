"""Face crops of clips: from a store where they are there, else found in the video and added to it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mertool.errors import ClipError, MertoolError
from mertool.extraction.decoding import DecodedClip, DecodeResult, DecoderPool, decode_faces
from mertool.extraction.plan import WorkItem, is_known
from mertool.features import Recipe
from mertool.store import ClipFeatures, Failure, FeatureStore, PartWriter, parts_folder


def crops_beside(output: Path, recipe: Recipe, shard: str = "") -> Path:
    """Where the crops for a store of video features are kept: `faces.h5`, if that is not of another recipe."""
    plain = output.with_name(f"faces{shard}.h5")
    if plain == output or (plain.exists() and _fingerprint(plain) != recipe.fingerprint):
        return output.with_name(f"faces-{recipe.fingerprint[:8]}{shard}.h5")
    return plain


def _fingerprint(path: Path) -> str:
    with FeatureStore(path) as store:
        return store.fingerprint


class FaceCropCache:
    """A store of face crops, open for reading (if it is there) and, with a writer, for adding. A context manager."""

    def __init__(self, path: Path, recipe: Recipe, writer: PartWriter | None):
        self.path, self.recipe, self.writer = path, recipe, writer
        self._stack = ExitStack()

    def __enter__(self) -> "FaceCropCache":
        self._store = self._stack.enter_context(FeatureStore(self.path)) if self.path.exists() else None
        if self._store and self._store.fingerprint != self.recipe.fingerprint:
            self._stack.close()
            raise MertoolError(f"{self.path} holds face crops of other settings: give another --faces")
        self._failures = {f.clip: f for f in self._store.failures()} if self._store else {}
        self._digests = self._store.digests() if self._store else {}
        self._facts: Any = self._store.facts() if self._store else {}
        return self

    def __exit__(self, *_: object) -> None:
        self.writer = None  # a thread that was reading ahead may still come back with crops
        self._stack.close()

    def read(self, items: list[WorkItem], decoders: DecoderPool) -> Iterator[DecodeResult]:
        """Crops of every item, those of the store first."""
        missing = []
        for item in items:
            if self.knows(item):
                yield item, self._stored(item.clip.clip)
            else:
                missing.append(item)
        media = self.recipe.media
        for item, found in decoders.read(missing, decode_faces, fps=media["fps"], most=media["most_frames"]):
            self._keep(item, found)
            yield item, found

    def knows(self, item: WorkItem) -> bool:
        """Whether the store has crops of the clip, or the reason why there are none."""
        return is_known(item, self._digests, self._failures)

    def has_all(self, items: list[WorkItem]) -> bool:
        """Whether nothing has to be found in the video, and no part of a killed run waits to be joined."""
        return all(map(self.knows, items)) and not parts_folder(self.path).exists()

    def _stored(self, clip: str) -> DecodedClip | ClipError:
        if clip in self._failures:
            return ClipError(self._failures[clip].reason, self._failures[clip].message)
        assert self._store is not None
        row = self._store.index[clip]
        seconds, seen, share = (self._facts[name][row] for name in ("seconds", "frames_seen", "face_share"))
        return DecodedClip(np.asarray(self._store.frames(clip)), float(seconds), int(seen), float(share))

    def _keep(self, item: WorkItem, found: DecodedClip | ClipError) -> None:
        if self.writer is None:
            return
        clip = item.clip.clip
        if isinstance(found, ClipError):
            self.writer.fail(Failure(clip, item.digest, "decode", found.reason, found.message))
        else:
            facts = (found.seconds, found.frames_seen, found.face_share)
            self.writer.add(ClipFeatures(clip, item.digest, found.content, *facts))

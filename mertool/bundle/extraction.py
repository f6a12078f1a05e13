"""Features of new clips for the parts of a bundle, in stores of a cache folder, and the bundle's scores of them.

Sound and faces of a clip are read once for all parts: encoders, and speech recognisers of text parts, work side by
side. Parts that differ in pooling, layers or aligner alone share the pass of their encoder. Texts come last.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mertool.bundle.reader import Bundle
from mertool.encoders import CheckpointRef
from mertool.errors import MertoolError
from mertool.extraction.decoding import DecodeResult, DecoderLimits
from mertool.extraction.encode_spec import EncoderAssets, assemble, assemble_several
from mertool.extraction.job import ExtractionJob, extract_to_store
from mertool.extraction.pipeline import EncodeSpec, Progress
from mertool.extraction.shared import Group, Listener, Reading, Target, fill_together, in_turn
from mertool.extraction.transcripts import Transcribed, clips_to_transcribe, load_recogniser, transcribe
from mertool.features import Recipe
from mertool.learning.cached_features import gather
from mertool.manifest import Manifest
from mertool.noise import NoiseCorruption
from mertool.store import FeatureStore, parts_folder

CLIPS_AT_ONCE = 1024
Part = dict[str, Any]


@dataclass(frozen=True)
class Extraction:
    """How to extract. `asr` recognises what is said in clips without a transcript, for parts that have no recogniser
    of their own; `noise` is mixed into the sound, and blurs the picture."""

    device: torch.device
    limits: DecoderLimits
    asr: CheckpointRef | None = None
    noise: NoiseCorruption | None = None


def extract_parts(
    bundle: Bundle, parts: list[Part], manifest: Manifest, folder: Path, how: Extraction, progress: Progress
) -> list[Path]:
    """Bring one store for each of the parts up to date with the manifest; the cache of another bundle is replaced."""
    targets = {part["name"]: _target(bundle, part, folder, how) for part in parts}
    for part in parts:  # an encoder that is gone is told now, not when its turn comes
        if not targets[part["name"]].output.exists():
            bundle.source_of(part)
    media = [part for part in parts if part["modality"] != "text"]
    listening = _Transcripts(manifest, folder, how)
    texts = [part for part in parts if part["modality"] == "text"]
    for part in texts:
        if "asr" in targets[part["name"]].recipe.media:
            listening.add(how.asr if "asr" not in part["recipe"]["media"] else bundle.recogniser_of(part))
    groups = [_group(bundle, same, [targets[part["name"]] for part in same], how) for same in _alike(bundle, media)]
    if groups or listening.sources:
        fill_together(manifest, groups, listening.listeners(), how.limits, how.device, progress)
    for part in texts:
        _fill_texts(bundle, part, targets[part["name"]], manifest, listening, how, progress)
    return [targets[part["name"]].output for part in parts]


def effective_recipe(bundle: Bundle, part: Part, how: Extraction) -> Recipe:
    """The recipe of a part's features of new clips."""
    recipe = bundle.recipe_of(part)
    media = dict(recipe.media)
    if part["modality"] == "text" and how.asr and "asr" not in media:
        media["asr"] = how.asr.digest()
    if how.noise and (part["modality"] != "text" or "asr" in media):
        media["noise"] = how.noise.to_json("video" if part["modality"] == "video" else "audio")
    return replace(recipe, media=media)


def transcripts_in(folder: Path, digest: str) -> Path:
    """The CSV in a cache folder with what the recogniser of this digest heard."""
    return folder / f"transcripts-{digest[:8]}.csv"


def _target(bundle: Bundle, part: Part, folder: Path, how: Extraction) -> Target:
    output, recipe = folder / f"{part['name']}.h5", effective_recipe(bundle, part, how)
    origin = {**part["origin"], **({"asr": how.asr.to_json()} if how.asr and "asr" in recipe.media else {})}
    return Target(output, recipe, origin, _is_other(output, recipe))


def _is_other(store: Path, recipe: Recipe) -> bool:
    """Whether another bundle filled the store, or a part of it; the cache belongs to the output, and is filled anew."""
    found = [store] if store.exists() else sorted(parts_folder(store).glob("part-*.h5"))
    for path in found[:1]:
        with FeatureStore(path) as opened:
            return opened.fingerprint != recipe.fingerprint
    return False


def _alike(bundle: Bundle, parts: list[Part]) -> list[list[Part]]:
    """Parts of one encoder, adapter, number format and media settings together, in their order."""
    groups: dict[str, list[Part]] = {}
    for part in parts:
        recipe = bundle.recipe_of(part)
        plain = replace(recipe, layers=(), pool="mean", storage_dtype="", aligner=None, layer_sum=False)
        groups.setdefault(plain.fingerprint, []).append(part)
    return list(groups.values())


def _group(bundle: Bundle, parts: list[Part], targets: list[Target], how: Extraction) -> Group:
    recipes = [target.recipe for target in targets]

    def load() -> EncodeSpec:
        return assemble_several(recipes, [_parts_of(bundle, part) for part in parts], how.device)

    return Group(tuple(targets), Reading.of(recipes[0], how.noise), load)


def _parts_of(bundle: Bundle, part: Part) -> EncoderAssets:
    return EncoderAssets(bundle.source_of(part), bundle.adapters_of(part), bundle.aligner_of(part))


def _fill_texts(
    bundle: Bundle,
    part: Part,
    target: Target,
    manifest: Manifest,
    listening: "_Transcripts",
    how: Extraction,
    progress: Progress,
) -> None:
    reasons: dict[str, str] = {}
    if digest := target.recipe.media.get("asr"):
        heard = listening.heard(digest)
        manifest, reasons = heard.manifest, heard.reasons

    def load() -> EncodeSpec:
        return assemble(target.recipe, _parts_of(bundle, part), how.device)

    job = ExtractionJob(
        target.output, target.recipe, target.origin, load, how.limits, no_text=reasons, device=how.device
    )
    extract_to_store(manifest, job, progress, target.overwrite)


class _Transcripts:
    """Speech recognition for the text parts: a recogniser listens once, whatever the number of parts it serves."""

    def __init__(self, manifest: Manifest, folder: Path, how: Extraction):
        self.manifest, self.folder, self.how = manifest, folder, how
        self.sources: dict[str, CheckpointRef] = {}
        self.found: dict[str, Transcribed] = {}

    def add(self, source: CheckpointRef | None) -> None:
        assert source is not None
        self.sources[source.digest()] = source

    def listeners(self) -> list[Listener]:
        """What has still to be heard."""
        found = []
        for digest, source in self.sources.items():
            items = clips_to_transcribe(self.manifest, transcripts_in(self.folder, digest), source)
            found.append(Listener(items, Reading("audio", (), self.how.noise), partial(self._open, digest)))
        return found

    def heard(self, digest: str) -> Transcribed:
        """The manifest with the recognised texts, and why clips have none."""
        if digest not in self.found:  # all was in the cache
            self._listen(digest, None, (), lambda *_: None)
        return self.found[digest]

    def _open(
        self, digest: str, turn: threading.Lock
    ) -> Callable[[Iterable[DecodeResult], Callable[[int, int, int], None]], None]:
        recogniser = load_recogniser(self.sources[digest], self.how.device)
        recogniser.recognise = in_turn(turn, recogniser.recognise)  # type: ignore[method-assign]
        return partial(self._listen, digest, recogniser)

    def _listen(
        self, digest: str, recogniser: Any, outcomes: Iterable[DecodeResult], progress: Callable[[int, int, int], None]
    ) -> None:
        sheet, source = transcripts_in(self.folder, digest), self.sources[digest]
        self.found[digest] = transcribe(
            self.manifest, sheet, source, lambda: recogniser, progress, lambda items: outcomes
        )


def score_blocks(
    bundle: Bundle, stores: list[FeatureStore], clips: list[str], device: torch.device, hidden: str | None = None
) -> Iterator[tuple[list[str], torch.Tensor, np.ndarray]]:
    """Clips with at least one part, some at a time: ids, logits (n, C) on the CPU, and which parts are there (n, M).

    Parts of the modality `hidden` count as absent.
    """
    shown = np.array([part["modality"] != hidden for part in bundle.parts])
    stores_shown = [store for store, show in zip(stores, shown, strict=True) if show]
    having = [clip for clip in clips if any(clip in store.index for store in stores_shown)]
    for start in range(0, len(having), CLIPS_AT_ONCE):
        some = having[start : start + CLIPS_AT_ONCE]
        features, present = _read(bundle, stores, shown, some)
        logits = bundle.logits([torch.from_numpy(f).to(device) for f in features], torch.from_numpy(present).to(device))
        yield some, logits.float().cpu(), present


def _read(
    bundle: Bundle, stores: list[FeatureStore], shown: np.ndarray, clips: list[str]
) -> tuple[list[np.ndarray], np.ndarray]:
    features, present = [], np.zeros((len(clips), len(stores)), bool)
    for number, (store, shape, show) in enumerate(zip(stores, bundle.shapes, shown, strict=True)):
        values = np.zeros((len(clips), *shape), np.float32)
        if show and len(store):  # a store without any features does not even know their shape
            (values,), here = gather([store], clips)
            if values.shape[1:] != shape:
                raise MertoolError(
                    f"{store.path} has features of shape {values.shape[1:]}, {bundle.run.folder} takes {shape}: "
                    "remove the file, and run `mertool predict` again"
                )
            present[:, number] = here[:, 0]
        features.append(values)
    return features, present

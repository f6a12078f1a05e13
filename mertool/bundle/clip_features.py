"""Features of new clips as a bundle takes them, in stores of a cache folder.

Speech recognition comes first. Then there is one extraction job for each encoder: features that differ only in
pooling, layers or aligner share the pass of their encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from mertool.bundle.feature_spec import FeatureSpec
from mertool.bundle.reader import Bundle
from mertool.encoders import SpeechRecognition
from mertool.encoders.recognition import recognition_id
from mertool.extraction.clip_encoder import ClipEncoder, EncoderAssets
from mertool.extraction.decoding import DecoderLimits
from mertool.extraction.driver import extract_to_stores
from mertool.extraction.job import ExtractionJob
from mertool.extraction.progress import ProgressCallback, StagedProgress
from mertool.extraction.targets import StoreTarget
from mertool.extraction.transcription import TranscribedManifest, Transcriber
from mertool.features import Recipe, faces_recipe
from mertool.manifest import Manifest
from mertool.noise import NoiseCorruption
from mertool.store import FeatureStore, read_part_recipe


@dataclass(frozen=True)
class BundleEncoder:
    """Loads the encoder that a spec names, which is looked up only when a clip has to be extracted."""

    bundle: Bundle
    spec: FeatureSpec

    def load(
        self, targets: Sequence[StoreTarget], device: torch.device, max_batch_cost: float | None = None
    ) -> ClipEncoder:
        assets = EncoderAssets(self.bundle.encoder_of(self.spec), self.bundle.adapters_of(self.spec))
        return assets.load(targets, device, max_batch_cost)


@dataclass(frozen=True, kw_only=True)
class ClipFeatureExtractor:
    """Extracts features of new clips for a bundle.

    bundle: whose recipes, encoders and trained parts are used.
    folder: of the stores, one per feature spec, of the face crops and of the transcripts.
    device: of the encoders.
    limits: of the decoder processes.
    asr: speech recognition for clips without a transcript, for features that were trained on given transcripts.
    noise: mixed into the audio, and blurs the frames.
    warn_without_vad: see Transcriber.
    """

    bundle: Bundle
    folder: Path
    device: torch.device
    limits: DecoderLimits = field(default_factory=DecoderLimits)
    asr: SpeechRecognition | None = None
    noise: NoiseCorruption | None = None
    warn_without_vad: bool = False

    def extract(self, specs: Sequence[FeatureSpec], manifest: Manifest, on_progress: ProgressCallback) -> list[Path]:
        """Bring one store for each of `specs` up to date with the manifest, and return their paths.

        Raises MertoolError for an encoder that is gone, before any work. Stores of another bundle are replaced.
        """
        targets = {spec.name: self._target_of(spec) for spec in specs}
        # A complete store needs no encoder, so one that is gone is an error only if its store is new.
        for spec in specs:
            if not targets[spec.name].path.exists():
                self.bundle.encoder_of(spec)
        recognisers = self._find_recognisers(specs)
        groups = self._group_by_encoder(specs)
        progress = StagedProgress(on_progress, stages=len(recognisers) + len(groups), clips=len(manifest))
        transcribed = {
            name: self._transcribe(manifest, recognition, progress.stage(stage))
            for stage, (name, recognition) in enumerate(recognisers.items())
        }
        for stage, group in enumerate(groups, start=len(recognisers)):
            job = self._make_job(group, [targets[spec.name] for spec in group], self._faces_of(group, groups))
            texts = transcribed.get(recognition_id(job.recipe.media) or "")
            if texts:
                job = replace(job, missing_text=texts.reasons)
            extract_to_stores(texts.manifest if texts else manifest, job, progress.stage(stage))
        return [targets[spec.name].path for spec in specs]

    def recipe_of(self, spec: FeatureSpec) -> Recipe:
        """The recipe of features of new clips, with the recogniser and the noise that change them."""
        recipe = self.bundle.recipe_of(spec)
        media = dict(recipe.media)
        if spec.modality == "text" and self.asr and "asr" not in media:
            media |= self.asr.to_media()
        if self.noise and (spec.modality != "text" or "asr" in media):
            media["noise"] = self.noise.to_json("video" if spec.modality == "video" else "audio")
        return replace(recipe, media=media)

    def _target_of(self, spec: FeatureSpec) -> StoreTarget:
        path, recipe = self.folder / f"{spec.name}.h5", self.recipe_of(spec)
        provenance = dict(spec.provenance)
        if self.asr and "asr" in recipe.media:
            provenance["asr"] = self.asr.checkpoint.to_json()
        return StoreTarget(
            path=path,
            recipe=recipe,
            provenance=provenance,
            aligner=self.bundle.aligner_of(spec),
            overwrite=_is_of_another_bundle(path, recipe),
        )

    def _find_recognisers(self, specs: Sequence[FeatureSpec]) -> dict[str, SpeechRecognition]:
        """The speech recognisers of the text features, by id."""
        found = [
            self.bundle.recognition_of(spec) if spec.recogniser else self.asr
            for spec in specs
            if spec.modality == "text"
        ]
        return {recognition.id: recognition for recognition in found if recognition}

    def _group_by_encoder(self, specs: Sequence[FeatureSpec]) -> list[list[FeatureSpec]]:
        """Group features that share encoder, adapter, number format and media settings; text comes last."""
        groups: dict[str, list[FeatureSpec]] = {}
        for spec in sorted(specs, key=lambda spec: spec.modality == "text"):
            recipe = self.recipe_of(spec)
            # Everything that the frames of an encoder depend on; the rest is done to them afterwards.
            shared = replace(recipe, layers=(), pool="mean", storage_dtype="", aligner=None, layer_sum=False)
            groups.setdefault(shared.fingerprint, []).append(spec)
        return list(groups.values())

    def _faces_of(self, group: Sequence[FeatureSpec], groups: Sequence[Sequence[FeatureSpec]]) -> Path | None:
        """A store of face crops, where another encoder needs the same ones; else none is kept."""
        media = self.recipe_of(group[0]).media
        video_media = [self.recipe_of(specs[0]).media for specs in groups if specs[0].modality == "video"]
        if group[0].modality != "video" or video_media.count(media) < 2:
            return None
        return self.folder / f"face-crops-{faces_recipe(media).fingerprint[:8]}.h5"

    def _make_job(
        self, group: Sequence[FeatureSpec], targets: Sequence[StoreTarget], faces: Path | None
    ) -> ExtractionJob:
        return ExtractionJob(
            targets=tuple(targets),
            encoder=BundleEncoder(self.bundle, group[0]),
            device=self.device,
            limits=self.limits,
            faces=faces,
            noise=self.noise,
        )

    def _transcribe(
        self, manifest: Manifest, recognition: SpeechRecognition, on_progress: ProgressCallback
    ) -> TranscribedManifest:
        transcriber = Transcriber(
            output=transcripts_in(self.folder, recognition.id),
            recognition=recognition,
            device=self.device,
            limits=self.limits,
            noise=self.noise,
            warn_without_vad=self.warn_without_vad,
        )
        return transcriber.transcribe(manifest, on_progress)


def transcripts_in(folder: Path, recogniser: str) -> Path:
    """The CSV in a cache folder with the transcripts by the recogniser of this id."""
    return folder / f"transcripts-{recogniser[:8]}.csv"


def _is_of_another_bundle(store: Path, recipe: Recipe) -> bool:
    """Return True if a store, or an unfinished part of it, has another recipe, and so was made for another bundle."""
    if store.exists():
        with FeatureStore(store) as opened:
            return opened.fingerprint != recipe.fingerprint
    return read_part_recipe(store) not in (None, recipe)

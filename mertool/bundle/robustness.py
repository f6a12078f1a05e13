"""Scores of a bundle on the clips that it predicted: as they are, without a modality, and in noise as in MER-NOISE.

The features beside the predictions are used again, so leaving a modality out costs next to nothing. Noise is mixed
into the audio, and frames are blurred, while clips are decoded; these features are kept in a folder of their own beside
the clean ones. Given transcripts stay as they are in noise; recognised ones are recognised again.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from mertool.bundle.clip_features import ClipFeatureExtractor, transcripts_in
from mertool.bundle.reader import Bundle
from mertool.bundle.scoring import score_blocks
from mertool.encoders import RecognitionSettings, SpeechRecognition, resolve_encoder
from mertool.encoders.recognition import recognition_id
from mertool.errors import MertoolError, combine_errors
from mertool.extraction.decoding import DecoderLimits, find_noise_faults
from mertool.extraction.progress import ProgressCallback
from mertool.extraction.transcripts import read_rows
from mertool.files import digest_json
from mertool.manifest import Clip, Manifest
from mertool.noise import NoiseCorruption
from mertool.predictions import feature_cache_folder
from mertool.store import FeatureStore

TOLERANCE = 1e-3  # between probabilities that two devices compute from the same features
BABBLE = "babble"
ClipProbabilities = dict[str, np.ndarray]  # (C,) by clip


@dataclass(frozen=True, kw_only=True)
class Condition:
    """The result of a bundle in one condition.

    name: for people.
    probabilities: of the clips that have a modality left.
    excluded: clips that noise did not reach, and so are not scored in it, by reason.
    """

    name: str
    probabilities: ClipProbabilities
    excluded: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RobustnessEvaluator:
    """Evaluates a bundle in harder conditions.

    bundle: the bundle that predicted.
    predictions: the file that it wrote; the features are beside it.
    manifest: of the clips.
    device, limits: for scoring, and for extracting noisy features.
    """

    bundle: Bundle
    predictions: Path
    manifest: Manifest
    device: torch.device
    limits: DecoderLimits = field(default_factory=DecoderLimits)

    def score_conditions(
        self,
        predicted: ClipProbabilities,
        *,
        missing: Sequence[str],
        noise: str | None,
        seed: int,
        on_progress: ProgressCallback,
    ) -> Iterator[Condition]:
        """Yield the result of each condition.

        missing: modalities, each of which is left out in turn. noise: a folder of audio files, or `babble`. Raises
        MertoolError before the first condition if a file of noise is none, or if the bundle does not predict
        `predicted` from the features.
        """
        self._check_missing(missing)
        corruption = self._read_noise(noise, seed) if noise else None
        clips = list(predicted)
        with ExitStack() as stack:
            stores = [stack.enter_context(FeatureStore(path)) for path in self._cached_stores()]
            unchanged = self._score(stores, clips)
            if list(unchanged) != clips or not all(
                np.allclose(unchanged[clip], predicted[clip], atol=TOLERANCE) for clip in clips
            ):
                raise MertoolError(
                    f"{self.predictions} is not what {self.bundle.run.folder} makes of "
                    f"{feature_cache_folder(self.predictions)}: run `mertool predict {self.bundle.run.folder}` again"
                )
            yield Condition(name="as is", probabilities=unchanged)
            for modality in missing:
                probabilities = self._score(stores, clips, without=modality)
                yield Condition(name=f"without {modality}", probabilities=probabilities)
            if corruption:
                paths = self._extract_noisy(stores, clips, corruption=corruption, on_progress=on_progress)
                noisy_stores = [stack.enter_context(FeatureStore(path)) for path in paths]
                excluded = self._clips_without_noise(clips, stores, noisy_stores, corruption=corruption)
                noisy = [clip for clip in clips if not any(clip in names for names in excluded.values())]
                probabilities = self._score(noisy_stores, noisy)
                yield Condition(name=f"noisy ({noise})", probabilities=probabilities, excluded=excluded)

    def _check_missing(self, missing: Sequence[str]) -> None:
        folder = self.bundle.run.folder
        used = [*dict.fromkeys(spec.modality for spec in self.bundle.feature_specs)]
        for modality in missing:
            if modality not in used:
                raise MertoolError(f"--missing {modality}: {folder} uses {', '.join(used)}: give one of those")
            if len(used) == 1:
                raise MertoolError(f"--missing {modality}: {folder} uses nothing else, so nothing would be left")

    def _cached_stores(self) -> list[Path]:
        """The stores that the predictions were made from."""
        paths = [feature_cache_folder(self.predictions) / f"{spec.name}.h5" for spec in self.bundle.feature_specs]
        for path in paths:
            if not path.exists():
                raise MertoolError(
                    f"{path} does not exist, and {self.bundle.run.folder} predicts from it: run `mertool predict` "
                    "again, or give the bundle that predicted"
                )
        return paths

    def _score(
        self, stores: Sequence[FeatureStore], clips: Sequence[str], without: str | None = None
    ) -> ClipProbabilities:
        blocks = score_blocks(self.bundle, stores, clips, device=self.device, without=without)
        return {
            clip: probabilities
            for block, logits, _ in blocks
            for clip, probabilities in zip(block, self.bundle.probabilities(logits).numpy(), strict=True)
        }

    def _read_noise(self, noise: str, seed: int) -> NoiseCorruption:
        """Return the noise. Files of a folder that are none raise MertoolError; babble leaves such clips out."""
        is_babble = noise == BABBLE
        corruption = (
            NoiseCorruption.babble(self.manifest, seed) if is_babble else NoiseCorruption.from_folder(Path(noise), seed)
        )
        faults = find_noise_faults(corruption.files, self.limits)
        if is_babble:
            return corruption.without(faults)
        if faults:
            messages = [f"{path}: {message}" for path, message in faults.items()]
            raise combine_errors(f"--noise {noise}: remove these files or give others", messages)
        return corruption

    def _clips_without_noise(
        self,
        clips: Sequence[str],
        clean: Sequence[FeatureStore],
        noisy: Sequence[FeatureStore],
        *,
        corruption: NoiseCorruption,
    ) -> dict[str, list[str]]:
        """Return the clips that the noise did not reach, or that lost their audio to a failure, by reason."""
        clip_of = {clip.clip: clip for clip in self.manifest.clips}
        silent: set[str] = set()
        lost: set[str] = set()
        reached: set[str] = set()
        for store, noisy_store in zip(clean, noisy, strict=True):
            if noisy_store.path == store.path:
                continue
            if store.recipe.modality == "audio":
                silent |= {failure.clip for failure in noisy_store.failures() if failure.reason == "silent"}
                lost |= set(store.ids) - set(noisy_store.ids)
                reached |= set(noisy_store.ids)
            elif store.recipe.modality == "video":
                blurred = {
                    clip for clip in store.ids if clip in clip_of and self._is_blurred(corruption, clip_of[clip])
                }
                reached |= blurred
            else:
                name = str(recognition_id(noisy_store.recipe.media))
                rows = read_rows(transcripts_in(noisy_store.path.parent, name))
                silent |= {clip for clip, row in rows.items() if row.reason == "silent"}
                reached |= {clip for clip, row in rows.items() if row.reason in ("", "no_text")}
        reasons: dict[str, list[str]] = {}
        for clip in clips:
            if clip in silent:
                reasons.setdefault("the audio is digital silence", []).append(clip)
            elif clip in lost:
                reasons.setdefault("the audio failed in noise", []).append(clip)
            elif clip not in reached:
                reasons.setdefault("noise changes none of its features", []).append(clip)
        return reasons

    @staticmethod
    def _is_blurred(corruption: NoiseCorruption, clip: Clip) -> bool:
        return bool(corruption.video_settings(clip)["blur_factor"] > 1)

    def _extract_noisy(
        self,
        stores: Sequence[FeatureStore],
        clips: Sequence[str],
        *,
        corruption: NoiseCorruption,
        on_progress: ProgressCallback,
    ) -> list[Path]:
        """Extract the clips in noise; features that noise does not reach keep their clean store."""
        folder = feature_cache_folder(self.predictions) / f"noise-{digest_json(corruption.to_json('audio'))[:8]}"
        extractor = ClipFeatureExtractor(
            bundle=self.bundle,
            folder=folder,
            device=self.device,
            limits=self.limits,
            asr=self._given_recogniser(stores),
            noise=corruption,
        )
        noisy_specs = [spec for spec in self.bundle.feature_specs if "noise" in extractor.recipe_of(spec).media]
        if not noisy_specs:
            raise MertoolError(
                f"--noise: {self.bundle.run.folder} uses only given transcripts, which noise does not reach"
            )
        paths = extractor.extract(noisy_specs, self._without_recognised_texts(stores, clips), on_progress)
        noisy = {spec.name: path for spec, path in zip(noisy_specs, paths, strict=True)}
        return [noisy.get(spec.name, store.path) for spec, store in zip(self.bundle.feature_specs, stores, strict=True)]

    def _given_recogniser(self, stores: Sequence[FeatureStore]) -> SpeechRecognition | None:
        """The speech recogniser that `predict` was given with --asr, if any."""
        for spec, store in zip(self.bundle.feature_specs, stores, strict=True):
            if spec.modality == "text" and "asr" in store.recipe.media and not spec.recogniser:
                origin = store.provenance["asr"]
                settings = RecognitionSettings.from_json(store.recipe.media["recognition"])
                settings.check_available(str(store.path))
                checkpoint = resolve_encoder(origin["checkpoint"], "audio", origin["revision"])
                return SpeechRecognition(checkpoint=checkpoint, settings=settings)
        return None

    def _without_recognised_texts(self, stores: Sequence[FeatureStore], clips: Sequence[str]) -> Manifest:
        """The clips, without the transcripts that were recognised, so that they are recognised again in noise."""
        folder = feature_cache_folder(self.predictions)
        names = {recognition_id(store.recipe.media) for store in stores if store.recipe.modality == "text"} - {None}
        recognised = {clip for name in names for clip in read_rows(transcripts_in(folder, str(name)))}
        scored = set(clips)
        chosen = [clip for clip in self.manifest.clips if clip.clip in scored]
        without_text = [replace(clip, text=None) if clip.clip in recognised else clip for clip in chosen]
        return replace(self.manifest, clips=tuple(without_text))

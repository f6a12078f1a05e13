"""A bundle's scores of the clips it predicted, as they were, without a modality, and in noise as in MER-NOISE.

The features beside the predictions are used again, so leaving a modality out costs next to nothing. Noise is mixed
into the sound, and the picture blurred, while clips are read; these features are kept in a folder of their own beside
the clean ones. Given transcripts stay as they are in noise; those that were recognised are recognised anew.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mertool.bundle.extraction import Extraction, effective_recipe, extract_parts, score_blocks, transcripts_in
from mertool.bundle.reader import Bundle
from mertool.devices import resolve_device
from mertool.encoders import find
from mertool.errors import MertoolError
from mertool.extraction.decoding import DecoderLimits
from mertool.extraction.pipeline import Progress
from mertool.extraction.transcripts import read_rows
from mertool.files import digest_json
from mertool.manifest import Manifest
from mertool.noise import NoiseCorruption
from mertool.predictions import feature_cache_folder
from mertool.store import FeatureStore

AGREE = 1e-3  # what probabilities made again may differ by, on another device
BABBLE = "babble"
Scores = dict[str, np.ndarray]  # probabilities (C,) of clips


@dataclass(frozen=True)
class RobustnessEvaluator:
    """A bundle, the predictions it made, with their features beside them, and the manifest of the clips."""

    folder: Path
    predictions: Path
    manifest: Manifest
    device: str = "auto"
    workers: int | None = None
    clip_timeout: float = 120.0

    def scores(
        self, given: Scores, missing: tuple[str, ...], noise: str | None, seed: int, progress: Progress
    ) -> Iterator[tuple[str, Scores]]:
        """Each condition's name and its probabilities of those of the `given` clips that have something left.

        Raises MertoolError, before the first, if `given` is not what the bundle makes of the features.
        """
        bundle = Bundle.open(self.folder)
        self._check(bundle, missing)
        how = Extraction(resolve_device(self.device), DecoderLimits(self.workers, self.clip_timeout))
        clips = list(given)
        with ExitStack() as stack:
            stores = [stack.enter_context(FeatureStore(path)) for path in self._cached(bundle)]
            again = _scores(bundle, stores, clips, how)
            if list(again) != clips or not all(np.allclose(again[clip], given[clip], atol=AGREE) for clip in clips):
                raise MertoolError(
                    f"{self.predictions} is not what {self.folder} makes of "
                    f"{feature_cache_folder(self.predictions)}: run `mertool predict {self.folder}` again"
                )
            yield "as is", again
            for modality in missing:
                yield f"without {modality}", _scores(bundle, stores, clips, how, modality)
            if noise:
                paths = self._noisy(bundle, stores, clips, noise, seed, how, progress)
                noisy = [stack.enter_context(FeatureStore(path)) for path in paths]
                yield f"noisy ({noise})", _scores(bundle, noisy, clips, how)

    def _check(self, bundle: Bundle, missing: tuple[str, ...]) -> None:
        used = [*dict.fromkeys(part["modality"] for part in bundle.parts)]
        for modality in missing:
            if modality not in used:
                raise MertoolError(f"--missing {modality}: {self.folder} uses {', '.join(used)}: give one of those")
            if len(used) == 1:
                raise MertoolError(f"--missing {modality}: {self.folder} uses nothing else, so nothing would be left")

    def _cached(self, bundle: Bundle) -> list[Path]:
        """The stores that the predictions were made from."""
        paths = [feature_cache_folder(self.predictions) / f"{part['name']}.h5" for part in bundle.parts]
        for path in paths:
            if not path.exists():
                raise MertoolError(
                    f"{path} does not exist, and {self.folder} predicts from it: run `mertool predict` again, "
                    "or give the bundle that predicted"
                )
        return paths

    def _noisy(
        self,
        bundle: Bundle,
        stores: list[FeatureStore],
        clips: list[str],
        noise: str,
        seed: int,
        how: Extraction,
        progress: Progress,
    ) -> list[Path]:
        """Stores of the clips in noise, and the clean ones of parts that no noise reaches."""
        sounds = (
            NoiseCorruption.babble(self.manifest, seed)
            if noise == BABBLE
            else NoiseCorruption.from_folder(Path(noise), seed)
        )
        how, heard = self._listening(bundle, stores, replace(how, noise=sounds))
        noisy = [part for part in bundle.parts if "noise" in effective_recipe(bundle, part, how).media]
        if not noisy:
            raise MertoolError(f"--noise: {self.folder} uses given transcripts alone, which noise does not reach")
        wanted = set(clips)
        chosen = [clip for clip in self.manifest.clips if clip.clip in wanted]
        manifest = replace(
            self.manifest, clips=tuple(replace(clip, text=None) if clip.clip in heard else clip for clip in chosen)
        )
        folder = feature_cache_folder(self.predictions) / f"noise-{digest_json(sounds.to_json('audio'))[:8]}"
        made = dict(zip(map(_name, noisy), extract_parts(bundle, noisy, manifest, folder, how, progress), strict=True))
        return [made.get(_name(part), store.path) for part, store in zip(bundle.parts, stores, strict=True)]

    def _listening(self, bundle: Bundle, stores: list[FeatureStore], how: Extraction) -> tuple[Extraction, set[str]]:
        """With the speech recogniser that was given to predict, if one was; the clips whose text was recognised."""
        heard: set[str] = set()
        for part, store in zip(bundle.parts, stores, strict=True):
            digest = store.recipe.media.get("asr")
            if digest and part["modality"] == "text":
                heard |= read_rows(transcripts_in(feature_cache_folder(self.predictions), digest)).keys()
                if "asr" not in part["recipe"]["media"]:
                    named = store.origin["asr"]
                    how = replace(how, asr=find(named["checkpoint"], "audio", named["revision"]))
        return how, heard


def _name(part: dict[str, str]) -> str:
    return part["name"]


def _scores(
    bundle: Bundle, stores: list[FeatureStore], clips: list[str], how: Extraction, hidden: str | None = None
) -> Scores:
    return {
        clip: row
        for some, logits, _ in score_blocks(bundle, stores, clips, how.device, hidden)
        for clip, row in zip(some, bundle.probabilities(logits).numpy(), strict=True)
    }

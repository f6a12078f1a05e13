"""`FeatureSpec`: the features of one store that a bundle was trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mertool.bundle.layout import COPY_BYTES, encoder_files
from mertool.encoders import CheckpointRef, RecognitionSettings
from mertool.errors import MertoolError, combine_errors
from mertool.features import Recipe, is_provenance
from mertool.learning.cached_features import SPANS, feature_shape, span_count
from mertool.runs import Run
from mertool.store import FeatureStore
from mertool.untrusted import is_plain_name

MAX_SIZE = 1 << 20  # of each axis of a clip's features


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """The features of one store that a bundle was trained on; an entry of `parts` in run.json.

    Names and digests become names of files, so ValueError is raised for any that is more than a plain name.

    name: the stem of the store's file.
    recipe: names encoder, adapter, aligner and speech recogniser by digest, and holds the media settings.
    provenance: where those were found (the store's `origin`); changes no prediction.
    shape: (L, D) of a clip's features as the heads take them.
    spans: the number of time spans that frames are averaged over; None for pooled features.
    """

    name: str
    recipe: Recipe
    provenance: dict[str, Any]
    shape: tuple[int, int]
    spans: int | None

    def __post_init__(self) -> None:
        if not is_plain_name(self.name):
            raise ValueError(f"the name {str(self.name)[:80]!r} is not plain: letters, digits, - and _ are valid")
        if wrong := [digest for digest in self.encoder_digests if not is_plain_name(digest)]:
            raise ValueError(f"{str(wrong[0])[:80]!r} is not the digest of an encoder")
        if not all(type(size) is int and 0 < size <= MAX_SIZE for size in self.shape):
            raise ValueError(f"the shape {self.shape} of features '{self.name}' is not valid")
        if self.spans not in (None, SPANS):
            raise ValueError(f"features '{self.name}' have {self.spans} spans, {SPANS} are valid")
        _ = self.recognition  # raises for settings that are not valid
        if not is_provenance(self.provenance):
            raise ValueError(f"the origin of features '{self.name}' is not valid")

    @property
    def modality(self) -> str:
        """The modality of the features."""
        return self.recipe.modality

    @property
    def recogniser(self) -> str | None:
        """Digest of the speech recogniser that made the transcripts; None for given transcripts."""
        return self.recipe.media.get("asr")

    @property
    def recognition(self) -> RecognitionSettings | None:
        """Settings of the speech recogniser; None for given transcripts, and for those of mertool before it had any."""
        settings = self.recipe.media.get("recognition")
        return None if settings is None else RecognitionSettings.from_json(settings)

    @property
    def encoder_digests(self) -> list[str]:
        """Digests of the encoder and, if there is one, of the speech recogniser."""
        return [self.recipe.weights, *([] if self.recogniser is None else [self.recogniser])]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `parts` in run.json."""
        return {
            "name": self.name,
            "modality": self.modality,
            "recipe": self.recipe.to_json(),
            "origin": self.provenance,
            "shape": list(self.shape),
            "spans": self.spans,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "FeatureSpec":
        """Return the spec that `to_json` described; raises KeyError, TypeError or ValueError for anything else."""
        layers, channels = value["shape"]
        return cls(
            name=value["name"],
            recipe=Recipe.from_json(value["recipe"]),
            provenance=value["origin"],
            shape=(layers, channels),
            spans=value["spans"],
        )


def describe_features(store: FeatureStore) -> FeatureSpec:
    """Describe one store for a bundle. Raises MertoolError for a store that cannot be part of one."""
    try:
        return FeatureSpec(
            name=store.path.stem,
            recipe=store.recipe,
            provenance=store.provenance,
            shape=feature_shape(store),
            spans=span_count(store),
        )
    except ValueError as error:
        raise MertoolError(f"{store.path} cannot be fused ({error}): rename the file, or extract it again") from error


def check_provenance(specs: Sequence[FeatureSpec]) -> None:
    """Raise one MertoolError that names all adapters, aligners and encoders that are gone or have changed."""
    faults = [fault for spec in specs for fault in _find_faults(spec)]
    if faults:
        raise combine_errors("the features cannot be made again from clips", faults)


def _find_faults(spec: FeatureSpec) -> Iterator[str]:
    for kind, stage, digest in (
        ("adapter", "finetune", spec.recipe.adapter),
        ("aligner", "align", spec.recipe.aligner),
    ):
        if not digest:
            continue
        folder = spec.provenance.get(kind)
        try:
            unchanged = folder is not None and Run.read(Path(folder), stage).digest() == digest
        except MertoolError as error:
            yield f"store '{spec.name}': {error}"
            continue
        if not unchanged:
            yield f"store '{spec.name}' was made with an {kind} that is no longer in {folder}: extract it again"
    for kind, folder, digest in copied_encoders(spec):
        if CheckpointRef(name=kind, folder=folder, checkpoint=str(folder)).digest() != digest:
            yield f"store '{spec.name}': the {kind} in {folder} is not the one it was made with: extract it again"


def copied_encoders(spec: FeatureSpec) -> Iterator[tuple[str, Path, str]]:
    """Kind (encoder or asr), folder and digest of the local encoders of a spec which are small enough to be copied."""
    for kind, digest in (("encoder", spec.recipe.weights), ("asr", spec.recogniser)):
        origin = spec.provenance.get(kind)
        folder = Path(origin["checkpoint"]) if origin else Path()
        if digest and folder.is_absolute() and folder.is_dir() and _is_small(folder):
            yield kind, folder, digest


def _is_small(folder: Path) -> bool:
    files = encoder_files(folder)
    return bool(files) and sum(file.stat().st_size for file in files) <= COPY_BYTES

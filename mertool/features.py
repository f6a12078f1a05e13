"""`Recipe`: everything that changes the value of a feature, and the fingerprint made of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mertool.errors import MertoolError, check_choice, suggest
from mertool.files import digest_json

MODALITIES = ("audio", "video", "text")
STORAGE_DTYPES = ("float16", "float32")
POOLING_MODES = ("mean", "mean-std", "none")
SAMPLE_RATE = 16_000
# Keys of a recipe's media settings. Imported features and face crops name the toolkit that made them; features with
# IMAGE_PROJECTION are those of CLIP after its projection.
IMPORTED, IMAGE_PROJECTION = "imported", "image_projection"
MAX_LAYER = 10_000
# Raised whenever our own preprocessing changes a value; stores of the old version are then rebuilt.
PREPROCESSING_VERSIONS = {"audio": 2, "video": 2, "text": 1, "faces": 2}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that changes the values of a store. Two stores may be compared or joined only if recipes are equal.

    Attributes:
        modality: `audio`, `video`, `text` or `faces`.
        encoder: Name of the encoder.
        weights: Digest of its weights.
        layers: Transformer blocks, counted from 1; 0 is the embedding, the input of block 1.
        pool: `mean` (one vector per layer and clip), `mean-std` (the mean over time, then the standard deviation: twice
            the channels) or `none` (frames are kept).
        compute_dtype: Number format of the encoder.
        storage_dtype: Number format of the values of a clip in the store; with float16, a clip that has a value beyond
            its range is kept in float32.
        media: Settings of decoding, such as the sample rate.
        adapter: Digest of the adapter on top of the encoder, or None.
        aligner: Digest of the aligner on top of it, or None.
        preprocessing: Version of our own preprocessing (see PREPROCESSING_VERSIONS).
        layer_sum: Whether the sum of the layers is stored.
    """

    modality: str
    encoder: str
    weights: str
    layers: tuple[int, ...]
    pool: str
    compute_dtype: str = "float32"
    storage_dtype: str = "float16"
    media: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    aligner: str | None = None
    preprocessing: int = 1
    layer_sum: bool = False

    def __post_init__(self) -> None:
        check_choice("pooling", self.pool, POOLING_MODES)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as it is stored."""
        value = {**asdict(self), "layers": list(self.layers)}
        if not self.layer_sum:
            del value["layer_sum"]  # so that stores made before there was such a thing keep their fingerprint
        return value

    @classmethod
    def from_json(cls, value: Any) -> "Recipe":
        """Return the recipe that `to_json` described; raise ValueError for anything else."""
        try:
            recipe = cls(**{**value, "layers": tuple(value["layers"])})
        except (TypeError, KeyError, MertoolError) as error:
            raise ValueError(f"the recipe is not valid: {error}") from error
        if wrong := [name for name, is_valid in _VALID_FIELDS.items() if not is_valid(getattr(recipe, name))]:
            raise ValueError(f"the recipe is not valid: {', '.join(wrong)}")
        return recipe

    @property
    def layer_axis(self) -> tuple[int, ...]:
        """The layer that each entry of a store's L axis is; a sum of layers counts as its last."""
        return self.layers[-1:] if self.layer_sum else self.layers

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the recipe's canonical JSON."""
        return digest_json(self.to_json())

    def differences(self, stored: "Recipe") -> str:
        """Return the differences in words for an error message: `encoder: 'a' there, 'b' here`."""
        mine, theirs = self.to_json(), stored.to_json()
        return "; ".join(
            f"{key.replace('_', ' ')}: {_short(theirs.get(key))} there, {_short(mine.get(key))} here"
            for key in {**mine, **theirs}
            if mine.get(key) != theirs.get(key)
        )


def _is_digest(value: Any) -> bool:
    return value is None or isinstance(value, str)


# A recipe is read from files of others: each field has the type that the code counts on.
_VALID_FIELDS: dict[str, Callable[[Any], bool]] = {
    "modality": lambda value: value in (*MODALITIES, "faces"),
    "encoder": lambda value: isinstance(value, str),
    "weights": lambda value: isinstance(value, str),
    "layers": lambda value: all(type(layer) is int and 0 <= layer <= MAX_LAYER for layer in value),
    "compute_dtype": lambda value: isinstance(value, str),
    "storage_dtype": lambda value: value in (*STORAGE_DTYPES, "uint8"),
    "media": lambda value: isinstance(value, dict),
    "adapter": _is_digest,
    "aligner": _is_digest,
    "preprocessing": lambda value: type(value) is int,
    "layer_sum": lambda value: type(value) is bool,
}


def is_provenance(provenance: Any) -> bool:
    """Return True if encoders are named as `CheckpointRef.to_json` does, and adapters and aligners by their folders."""
    if not isinstance(provenance, dict):
        return False
    encoders = [origin for kind in ("encoder", "asr") if (origin := provenance.get(kind)) is not None]
    folders = [folder for kind in ("adapter", "aligner") if (folder := provenance.get(kind)) is not None]
    return all(isinstance(folder, str) for folder in folders) and all(
        isinstance(origin, dict)
        and all(isinstance(origin.get(key), str) for key in ("name", "checkpoint"))
        and isinstance(origin.get("revision"), str | None)
        for origin in encoders
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:16] + "..."


LAST_FOUR = "last-four-sum"


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """Layers named by `all`, `last`, `16-21`, `0,6,12` or a mix of those, for an encoder of `count` blocks.

    >>> parse_layers("16-18,24", 24)
    (16, 17, 18, 24)
    """
    valid = f"valid: all, last, {LAST_FOUR}, a range as 16-21 or a list as 0,6,12, with 0 (embedding) to {count}"
    chosen: list[int] = []
    for piece in text.replace(" ", "").lower().split(","):
        if piece == "all":
            chosen += range(count + 1)
        elif piece == "last":
            chosen.append(count)
        else:
            first, _, last = piece.partition("-")
            if not first.isdecimal() or not (last.isdecimal() or "-" not in piece):
                likely = suggest(text, [LAST_FOUR]) if text != LAST_FOUR else ""
                raise MertoolError(f"layers '{text}' cannot be read; {likely}{valid}")
            if last and int(last) < int(first):
                raise MertoolError(f"layers '{text}': {piece} runs backwards, write {last}-{first}")
            chosen += range(int(first), int(last or first) + 1)
    if not chosen or max(chosen) > count:
        raise MertoolError(f"layers '{text}' are not in this encoder; {valid}")
    return tuple(sorted(set(chosen)))


def format_layers(layers: tuple[int, ...] | list[int]) -> str:
    """The shortest spelling of a set of layers: `16-21`."""
    numbers = sorted(layers)
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers))


def describe_layers(layers: str) -> str:
    """Return formatted layers with their noun: `layer 3`, `layers 16-21`."""
    return f"layer{'' if layers.isdecimal() else 's'} {layers}"


def aligner_input_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the frame store that an aligner of this video recipe is trained on."""
    return replace(recipe, pool="none", aligner=None)


def faces_recipe(media: dict[str, Any]) -> Recipe:
    """The recipe of face crops found with these settings, or imported from the toolkit that they name.

    Settings of the encoder are disregarded.
    """
    media = {name: value for name, value in media.items() if name != IMAGE_PROJECTION}
    if IMPORTED in media:
        return Recipe(
            modality="faces",
            encoder=str(media[IMPORTED]),
            weights=IMPORTED,
            layers=(),
            pool="none",
            storage_dtype="uint8",
            media=media,
            preprocessing=0,
        )
    return Recipe(
        modality="faces",
        encoder="mtcnn",
        weights="facenet-pytorch",
        layers=(),
        pool="none",
        storage_dtype="uint8",
        media=media,
        preprocessing=PREPROCESSING_VERSIONS["faces"],
    )

"""Stage `extract`: clips in, a feature store out."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mertool import encoders
from mertool.devices import dtype_name, resolve_device, resolve_dtype
from mertool.engine import pipeline
from mertool.engine.assemble import Parts, assemble
from mertool.engine.fill import Filled, Limits, fill_store
from mertool.errors import ABSENT, MertoolError, choose
from mertool.features import POOLS, PREPROCESSING, SAMPLE_RATE, Recipe, faces_recipe, parse_layers, unaligned_frames
from mertool.files import check_writable
from mertool.manifest import Manifest
from mertool.runs import Run
from mertool.store import FeatureStore

MODALITIES = ("audio", "video", "faces", "text")
STORAGE = ("float16", "float32")
DEFAULT_LAYERS = {"audio": "all", "video": "last", "text": "last"}
MOST_FRAMES = 256


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract and how.

    encoder: table name, hub id or folder; None is the table's default.
    layers: `all`, `last`, `16-21`, `0,6,12`; 0 is the embedding, 1..n are transformer blocks.
    pool: `mean` over time, or `none` to keep frames.
    adapter: a finetune run; training clips get the adapter that did not see them.
    aligner: an align run (video): pooled features in the acoustic space.
    faces: a store of `extract faces` (video): no detection is done again.
    fps: face frames per second of video.
    clip_timeout: seconds after which a decoder is killed.
    """

    modality: str
    encoder: str | None = None
    layers: str | None = None
    pool: str = "mean"
    adapter: Path | None = None
    aligner: Path | None = None
    faces: Path | None = None
    fps: float = 4.0
    device: str = "auto"
    dtype: str = "auto"
    storage: str = "float16"
    workers: int | None = None
    clip_timeout: float = 120.0
    overwrite: bool = False

    def __post_init__(self) -> None:
        choose("modality", self.modality, MODALITIES)
        choose("pooling", self.pool, POOLS)
        choose("storage", self.storage, STORAGE)
        if not 0 < self.fps <= 120:
            raise MertoolError(f"fps {self.fps:g} is not in the range of video: give 0.1 to 120")
        if self.clip_timeout <= 0 or (self.workers is not None and self.workers < 1):
            raise MertoolError("--clip-timeout and --workers must be positive")
        if self.aligner and self.pool == "none":
            raise MertoolError("an aligner gives one vector per clip: leave out --pool none")


@dataclass(frozen=True)
class ExtractResult:
    """What the command reports."""

    store: str
    clips: int
    extracted: int
    cached: int
    features: int
    missing: dict[str, int]
    failed: dict[str, int]
    layers: int
    channels: int
    media_seconds: float
    seconds: dict[str, float]
    worked: bool

    @property
    def failed_share(self) -> float:
        """Share of the clips that failed; absent modalities are not failures."""
        return sum(self.failed.values()) / max(1, self.clips)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "failed_share": self.failed_share}


def extract(manifest: Manifest, output: Path, options: ExtractOptions, progress: pipeline.Progress) -> ExtractResult:
    """Fill the store `output` with features of every clip; resumes, and skips what is there."""
    check_writable(output, manifest.source, options.faces)
    prepare = _prepare_faces if options.modality == "faces" else _prepare_encoder
    recipe, origin, load = prepare(options)
    if options.faces:
        _check_faces(options)
    filled = fill_store(
        manifest,
        output,
        recipe,
        origin,
        load,
        progress,
        Limits(options.workers, options.clip_timeout),
        faces=options.faces,
        overwrite=options.overwrite,
    )
    return _result(output, manifest, filled)


Prepared = tuple[Recipe, dict[str, Any], Callable[[], pipeline.Work | None]]


def _prepare_faces(options: ExtractOptions) -> Prepared:
    return faces_recipe(_media_settings(options)), {}, lambda: None


def _prepare_encoder(options: ExtractOptions) -> Prepared:
    """The recipe, where its parts come from, and a function that loads them once there is work to do."""
    modality = options.modality
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    source = encoders.find(options.encoder or encoders.DEFAULTS[modality], modality)
    weights = source.digest()
    adapter = _read_adapter(options.adapter, source.name, weights)
    aligner = Run.read(options.aligner, "align", "video", "sizes") if options.aligner else None
    layers = parse_layers(
        DEFAULT_LAYERS[modality] if options.layers is None else options.layers, encoders.count_layers(source)
    )
    recipe = Recipe(
        modality,
        source.name,
        weights,
        layers,
        options.pool,
        dtype_name(dtype),
        options.storage,
        _media_settings(options),
        adapter.digest() if adapter else None,
        aligner.digest() if aligner else None,
        PREPROCESSING[modality],
    )
    trained_on = Recipe.from_json(aligner.info["video"]) if aligner else unaligned_frames(recipe)
    if trained_on != unaligned_frames(recipe):
        raise MertoolError(
            f"{options.aligner} was trained on other video features "
            f"({unaligned_frames(recipe).differences(trained_on)}): extract with its settings"
        )
    origin = {
        "encoder": source.to_json(),
        "adapter": str(options.adapter.absolute()) if options.adapter else None,
        "aligner": str(options.aligner.absolute()) if options.aligner else None,
    }

    parts = Parts(
        source,
        adapter.folder / "adapters" if adapter else None,
        options.aligner,
        adapter.info["adapter_of_clip"] if adapter else {},
    )
    return recipe, origin, lambda: assemble(recipe, parts, device)


def _media_settings(options: ExtractOptions) -> dict[str, Any]:
    if options.modality == "audio":
        return {"sample_rate": SAMPLE_RATE}
    if options.modality == "text":
        return {}
    from mertool.faces import SETTINGS

    return {"fps": options.fps, "most_frames": MOST_FRAMES, **SETTINGS}


def _read_adapter(folder: Path | None, encoder: str, weights: str) -> Run | None:
    if folder is None:
        return None
    run = Run.read(folder, "finetune", "encoder", "adapter_of_clip")
    if run.info["encoder"]["weights"] != weights:
        raise MertoolError(
            f"{folder} adapts encoder '{run.info['encoder']['name']}' (weights {run.info['encoder']['weights'][:12]}), "
            f"not '{encoder}' ({weights[:12]}): give the same --encoder"
        )
    return run


def _check_faces(options: ExtractOptions) -> None:
    if options.modality != "video" or options.faces is None:
        raise MertoolError("--faces belongs to `extract video`")
    with FeatureStore(options.faces) as store:
        if store.recipe.modality != "faces":
            raise MertoolError(f"{store.path} holds {store.recipe.modality}: --faces takes a store of `extract faces`")
        if store.recipe.media != _media_settings(options):
            raise MertoolError(f"{store.path} was made with other settings ({store.recipe.media}): give the same --fps")


def _result(output: Path, manifest: Manifest, filled: Filled) -> ExtractResult:
    with FeatureStore(output) as store:
        layers, channels = max(1, len(store.layers)), store.channels if len(store) else 0
        features = sum(clip.clip in store.index for clip in manifest.clips)
    counts = Counter(filled.reasons)
    report = filled.report
    return ExtractResult(
        str(output),
        len(manifest),
        report.extracted,
        filled.cached,
        features,
        {reason: count for reason, count in sorted(counts.items()) if reason in ABSENT},
        {reason: count for reason, count in sorted(counts.items()) if reason not in ABSENT},
        layers,
        channels,
        round(report.media_seconds, 3),
        {name: round(getattr(report, name), 3) for name in ("decode_wait", "encode", "write")},
        report.extracted + sum(report.reasons.values()) > 0,
    )

"""Stage `extract`: clips in, a feature store out."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mertool import encoders
from mertool.devices import dtype_name, resolve_device, resolve_dtype
from mertool.errors import MISSING_MODALITY_REASONS, MertoolError
from mertool.extraction import pipeline
from mertool.extraction.decoding import DecoderLimits
from mertool.extraction.encode_spec import EncoderAssets, assemble
from mertool.extraction.estimate import Estimate, estimate_extraction
from mertool.extraction.face_crops import crops_path_beside
from mertool.extraction.job import ExtractionJob, ExtractionSummary, extract_to_store
from mertool.extraction.transcripts import transcribe_clips, transcripts_beside
from mertool.features import (
    LAST_FOUR,
    PREPROCESSING_VERSIONS,
    SAMPLE_RATE,
    Recipe,
    aligner_input_recipe,
    faces_recipe,
    parse_layers,
)
from mertool.files import check_writable
from mertool.manifest import Manifest
from mertool.options.extract import ExtractOptions, parse_shard
from mertool.runs import Run
from mertool.store import FeatureStore, check_store

DEFAULT_LAYERS = {"audio": "all", "video": "last", "text": "last"}
MOST_FRAMES = 256


@dataclass(frozen=True)
class ExtractResult:
    """What the command reports. `seconds` says where the time went (see engine.pipeline.Report).

    out_of_fold: clips that the adapters were trained on, whose features come from the one that did not see them.
    """

    store: str
    clips: int
    extracted: int
    cached: int
    features: int
    missing: dict[str, int]
    failed: dict[str, int]
    layers: int
    channels: int
    truncated: int
    media_seconds: float
    seconds: dict[str, float]
    transcripts: str | None
    faces: str | None
    out_of_fold: int | None
    worked: bool

    @property
    def failed_share(self) -> float:
        """Share of the clips that failed; absent modalities are not failures."""
        return sum(self.failed.values()) / max(1, self.clips)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "failed_share": self.failed_share}


def extract(manifest: Manifest, output: Path, options: ExtractOptions, progress: pipeline.Progress) -> ExtractResult:
    """Fill the store `output` with features of every clip; resumes, and skips what is there."""
    manifest, job = _prepare(manifest, output, options)
    if options.asr:
        check_store(job.output, job.recipe, options.overwrite)  # before hours of listening
        manifest, job = _transcribe(manifest, job, options, progress)
    filled = extract_to_store(manifest, job, progress, options.overwrite)
    sheet = transcripts_beside(job.output)
    out_of_fold = None
    if options.adapter:
        trained_on = Run.read(options.adapter, "finetune", "adapter_of_clip").info["adapter_of_clip"]
        out_of_fold = sum(clip.clip in trained_on for clip in manifest.clips)
    return _result(job, manifest, filled, str(sheet) if options.asr and sheet.exists() else None, out_of_fold)


def estimate(manifest: Manifest, output: Path, options: ExtractOptions) -> Estimate:
    """What `extract` would do and how long it would take, from a measured sample; writes nothing."""
    manifest, job = _prepare(manifest, output, options)
    if options.asr and any(not (clip.text or "").strip() for clip in manifest.clips):
        raise MertoolError("--dry-run measures no speech recognition: leave out --asr for an estimate of the rest")
    return estimate_extraction(manifest, job, options.overwrite)


def _prepare(manifest: Manifest, output: Path, options: ExtractOptions) -> tuple[Manifest, ExtractionJob]:
    """The clips of this shard, and what is to be done with them; everything is checked here."""
    if options.modality == "text" and not options.asr and not any((clip.text or "").strip() for clip in manifest.clips):
        raise MertoolError(
            f"no clip of {manifest.source} has a transcript: build a manifest with `mertool manifest --transcripts`, "
            "or give --asr whisper-large-v3"
        )
    shard = ""
    if options.shard:
        number, count = parse_shard(options.shard)
        if len(manifest) < count:
            raise MertoolError(f"{manifest.source} has {len(manifest)} clips, too few for {count} shards")
        ends = [len(manifest) * part // count for part in (number - 1, number)]
        manifest = replace(manifest, clips=manifest.clips[slice(*ends)])
        # Padded, so that the shell lists the shards in the order of the clips.
        shard = f".{number:0{len(str(count))}}-of-{count}"
        output = output.with_name(f"{output.stem}{shard}{output.suffix}")
    check_writable(output, manifest.source, options.faces)
    faces = _faces_store(output, options, shard)
    prepare = _prepare_faces if options.modality == "faces" else _prepare_encoder
    recipe, origin, load = prepare(options)
    return manifest, ExtractionJob(
        output,
        recipe,
        origin,
        load,
        DecoderLimits(options.workers, options.clip_timeout),
        faces,
        device=torch.device("cpu") if options.modality == "faces" else resolve_device(options.device),
        engine=options.engine,
        ray_address=options.ray_address,
    )


def _transcribe(
    manifest: Manifest, job: ExtractionJob, options: ExtractOptions, progress: pipeline.Progress
) -> tuple[Manifest, ExtractionJob]:
    """The manifest with recognised texts where it had none; the CSV beside the store keeps them."""
    source = encoders.find_recogniser(str(options.asr))
    device = resolve_device(options.device)
    found = transcribe_clips(
        manifest, job.output, source, device, job.limits, lambda done, total, failed: progress(done, total, failed, 0.0)
    )
    return found.manifest, replace(job, no_text=found.reasons)


def _faces_store(output: Path, options: ExtractOptions, shard: str) -> Path | None:
    """The store of crops that video features are made from; None where crops are not kept."""
    if options.modality != "video":
        return None
    recipe = faces_recipe(_media_settings(options))
    if options.faces is None:
        return crops_path_beside(output, recipe, shard) if options.keep_faces else None
    with FeatureStore(options.faces) as store:
        if store.recipe.modality != "faces":
            raise MertoolError(f"{store.path} holds {store.recipe.modality}: --faces takes a store of `extract faces`")
        if store.fingerprint != recipe.fingerprint:
            raise MertoolError(
                f"{store.path} was made with other settings ({recipe.differences(store.recipe)}): give the same --fps, "
                "or make it again with `mertool extract faces --overwrite`"
            )
    return options.faces


Prepared = tuple[Recipe, dict[str, Any], Callable[[], pipeline.EncodeSpec | None]]


def _prepare_faces(options: ExtractOptions) -> Prepared:
    return faces_recipe(_media_settings(options)), {}, _no_encoder


def _no_encoder() -> None:
    """Crops are stored as they are."""


def _prepare_encoder(options: ExtractOptions) -> Prepared:
    """The recipe, where its parts come from, and a function that loads them once there is work to do."""
    modality = options.modality
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    aligner = Run.read(options.aligner, "align", "video", "sizes", "origin") if options.aligner else None
    source = encoders.find(options.encoder or _usual_encoder(modality, options.adapter, aligner), modality)
    if options.dtype == "auto" and modality == "text" and encoders.stores_half_precision(source):
        dtype = torch.bfloat16  # a large language model in float32 would need twice the memory its authors used
    weights = source.digest()
    adapter = _read_adapter(options.adapter, source.name, weights)
    blocks = encoders.count_layers(source)
    layers_text = options.layers or DEFAULT_LAYERS[modality]
    layer_sum = layers_text == LAST_FOUR
    layers = parse_layers(f"{max(0, blocks - 3)}-{blocks}" if layer_sum else layers_text, blocks)
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
        PREPROCESSING_VERSIONS[modality],
        layer_sum,
    )
    trained_on = Recipe.from_json(aligner.info["video"]) if aligner else aligner_input_recipe(recipe)
    if trained_on != aligner_input_recipe(recipe):
        raise MertoolError(
            f"{options.aligner} was trained on other video features "
            f"({aligner_input_recipe(recipe).differences(trained_on)}): extract with its settings"
        )
    origin = {
        "encoder": source.to_json(),
        "adapter": str(options.adapter.absolute()) if options.adapter else None,
        "aligner": str(options.aligner.absolute()) if options.aligner else None,
    }
    if options.asr:
        origin["asr"] = encoders.find_recogniser(options.asr).to_json()

    parts = EncoderAssets(
        source,
        adapter.folder.absolute() / "adapters" if adapter else None,
        options.aligner.absolute() if options.aligner else None,
        adapter.info["adapter_of_clip"] if adapter else {},
    )
    return recipe, origin, partial(assemble, recipe, parts, device, _batch_cost(options))


def _usual_encoder(modality: str, adapter: Path | None, aligner: Run | None) -> str:
    """The encoder where none is given: the one that the adapter or the aligner was trained on, else the table's."""
    if adapter:
        return str(Run.read(adapter, "finetune", "encoder").info["encoder"]["checkpoint"])
    if aligner:
        return str(aligner.info["origin"]["encoder"]["checkpoint"])
    return encoders.DEFAULTS[modality]


def _batch_cost(options: ExtractOptions) -> float | None:
    """The largest padded cost of a batch in the encoder's own unit."""
    if options.batch_seconds is None or options.modality == "text":
        return None
    return options.batch_seconds * (options.fps if options.modality == "video" else 1)


def _media_settings(options: ExtractOptions) -> dict[str, Any]:
    if options.modality == "audio":
        return {"sample_rate": SAMPLE_RATE}
    if options.modality == "text":
        return {"asr": encoders.find_recogniser(options.asr).digest()} if options.asr else {}
    from mertool.faces import SETTINGS

    return {"fps": options.fps, "most_frames": MOST_FRAMES, **SETTINGS}


def _read_adapter(folder: Path | None, encoder: str, weights: str) -> Run | None:
    if folder is None:
        return None
    run = Run.read(folder, "finetune", "encoder", "adapter_of_clip")
    if not run.is_complete:
        raise MertoolError(f"{folder} is damaged, a file of it is missing or cut: run `mertool finetune` again")
    if run.info["encoder"]["weights"] != weights:
        raise MertoolError(
            f"{folder} adapts encoder '{run.info['encoder']['name']}' (weights {run.info['encoder']['weights'][:12]}), "
            f"not '{encoder}' ({weights[:12]}): give the same --encoder"
        )
    return run


def _result(
    job: ExtractionJob, manifest: Manifest, filled: ExtractionSummary, transcripts: str | None, out_of_fold: int | None
) -> ExtractResult:
    with FeatureStore(job.output) as store:
        layers, channels = max(1, len(store.layers)), store.channels if len(store) else 0
        features = sum(clip.clip in store.index for clip in manifest.clips)
    counts = Counter(filled.reasons)
    report = filled.report
    return ExtractResult(
        str(job.output),
        len(manifest),
        report.extracted,
        filled.cached,
        features,
        {reason: count for reason, count in sorted(counts.items()) if reason in MISSING_MODALITY_REASONS},
        {reason: count for reason, count in sorted(counts.items()) if reason not in MISSING_MODALITY_REASONS},
        layers,
        channels,
        report.truncated,
        round(report.media_seconds, 3),
        {name: round(getattr(report, name), 3) for name in ("wall", "encode", "idle", "decode", "faces", "write")},
        transcripts,
        str(job.faces) if job.faces else None,
        out_of_fold,
        report.done > 0,
    )

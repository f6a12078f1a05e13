"""`build_job`: from the options of `extract` to an extraction job; everything is checked before the long work."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mertool import encoders
from mertool.devices import dtype_name, resolve_device, resolve_dtype
from mertool.encoders.windows import audio_settings, mertools_audio_settings
from mertool.errors import MertoolError
from mertool.extraction.clip_encoder import EncoderAssets
from mertool.extraction.decoding import DecoderLimits
from mertool.extraction.face_crops import crops_path_beside
from mertool.extraction.job import ExtractionJob
from mertool.extraction.targets import StoreTarget
from mertool.features import (
    IMAGE_PROJECTION,
    IMPORTED,
    LAST_FOUR,
    PREPROCESSING_VERSIONS,
    Recipe,
    aligner_input_recipe,
    faces_recipe,
    parse_layers,
)
from mertool.files import check_writable
from mertool.manifest import Manifest
from mertool.options.extract import DEFAULT_LAYERS, ExtractOptions, parse_shard
from mertool.runs import Run
from mertool.store import FeatureStore

MAX_FRAMES = 256


def build_job(manifest: Manifest, output: Path, options: ExtractOptions) -> tuple[Manifest, ExtractionJob]:
    """Return the clips of this shard and the job that extracts them.

    Raises MertoolError for options that do not fit the clips, the encoder or each other.
    """
    if options.modality == "text" and not options.asr and not any((clip.text or "").strip() for clip in manifest.clips):
        raise MertoolError(
            f"no clip of {manifest.source} has a transcript: build a manifest with `mertool manifest --transcripts`, "
            "or give --asr whisper-large-v3"
        )
    manifest, suffix = _select_shard(manifest, options.shard)
    output = _add_suffix(output, suffix)
    frames = _add_suffix(options.frames, suffix) if options.frames else None
    inputs = (manifest.source, options.faces, options.adapter, options.aligner)
    check_writable(output, *inputs)
    if frames:
        check_writable(frames, *inputs)
    faces = _faces_path(output, options, suffix)
    _check_distinct(output, frames, faces)
    job = ExtractionJob(
        targets=(_faces_target(output, options),),
        limits=DecoderLimits(options.workers, options.clip_timeout),
        faces=faces,
        engine=options.engine,
        ray_address=options.ray_address,
    )
    if options.modality != "faces":
        job = _with_encoder(job, output, frames, options=options)
    return manifest, job


def _select_shard(manifest: Manifest, shard: str | None) -> tuple[Manifest, str]:
    """The clips of a shard, and what is added to the names of its stores."""
    if shard is None:
        return manifest, ""
    number, count = parse_shard(shard)
    if len(manifest) < count:
        raise MertoolError(f"{manifest.source} has {len(manifest)} clips, too few for {count} shards")
    first, end = (len(manifest) * index // count for index in (number - 1, number))
    # Padded, so that the shell lists the shards in the order of the clips.
    return replace(manifest, clips=manifest.clips[first:end]), f".{number:0{len(str(count))}}-of-{count}"


def _add_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.stem}{suffix}{path.suffix}")


def _check_distinct(output: Path, frames: Path | None, faces: Path | None) -> None:
    """Raise MertoolError if one file would be two stores."""
    for purpose, path in (("the output", output), ("the store of face crops", faces)):
        if frames and path and frames.absolute() == path.absolute():
            raise MertoolError(f"--frames {frames} is {purpose}, too: give the frames a file of their own")


def _faces_target(output: Path, options: ExtractOptions) -> StoreTarget:
    recipe = faces_recipe(_media_settings(options))
    return StoreTarget(path=output, recipe=recipe, overwrite=options.overwrite)


def _faces_path(output: Path, options: ExtractOptions, suffix: str) -> Path | None:
    """The store of face crops that video features are made from; None where crops are not kept."""
    if options.modality != "video":
        return None
    recipe = faces_recipe(_media_settings(options))
    if options.faces is None:
        return crops_path_beside(output, recipe, suffix) if options.keep_faces else None
    with FeatureStore(options.faces) as store:
        if store.recipe.modality != "faces":
            raise MertoolError(f"{store.path} holds {store.recipe.modality}: --faces takes a store of `extract faces`")
        if IMPORTED not in store.recipe.media and store.fingerprint != recipe.fingerprint:
            raise MertoolError(
                f"{store.path} was made with other settings ({recipe.differences(store.recipe)}): give the same --fps, "
                "or make it again with `mertool extract faces --overwrite`"
            )
    return options.faces


def _with_encoder(job: ExtractionJob, output: Path, frames: Path | None, *, options: ExtractOptions) -> ExtractionJob:
    """The job with the encoder, the adapters and the aligner that the options name, and a second store if asked for."""
    aligner = (
        Run.read(options.aligner, "align", "video", "sizes", "origin", "aligner_of_clip") if options.aligner else None
    )
    name = options.encoder or _default_encoder(options, aligner)
    checkpoint = encoders.resolve_encoder(name, options.modality)
    adapter = _read_adapter(options.adapter, checkpoint)
    recipe = _make_recipe(options, checkpoint, adapter=adapter, aligner=aligner)
    target = StoreTarget(
        path=output,
        recipe=recipe,
        provenance=_provenance(options, checkpoint),
        aligner=aligner.folder.absolute() if aligner else None,
        overwrite=options.overwrite,
    )
    targets = [target]
    if frames:
        # As `--pool none` would make them; an aligner gives no frames, so they are what it is trained on.
        provenance = {**target.provenance, "aligner": None}
        frames_recipe = aligner_input_recipe(recipe)
        targets.append(replace(target, path=frames, recipe=frames_recipe, provenance=provenance, aligner=None))
    return replace(
        job,
        targets=tuple(targets),
        encoder=EncoderAssets(
            checkpoint,
            adapter.folder.absolute() / "adapters" if adapter else None,
            adapter.info["adapter_of_clip"] if adapter else {},
        ),
        device=resolve_device(options.device),
        max_batch_cost=_max_batch_cost(options),
    )


def _default_encoder(options: ExtractOptions, aligner: Run | None) -> str:
    """The encoder that the adapter or the aligner was trained on, else the default of the encoder table."""
    if options.adapter:
        return str(_read_finetune_run(options.adapter).info["encoder"]["checkpoint"])
    if aligner:
        return str(aligner.info["origin"]["encoder"]["checkpoint"])
    return encoders.DEFAULT_ENCODERS[options.modality]


def _read_finetune_run(folder: Path) -> Run:
    return Run.read(folder, "finetune", "encoder", "adapter_of_clip")


def _read_adapter(folder: Path | None, checkpoint: encoders.CheckpointRef) -> Run | None:
    """The finetune run in `folder`, checked against the encoder."""
    if folder is None:
        return None
    run = _read_finetune_run(folder)
    if not run.is_complete:
        raise MertoolError(f"{folder} is damaged, a file of it is missing or cut: run `mertool finetune` again")
    trained_on, weights = run.info["encoder"], checkpoint.digest()
    if trained_on["weights"] != weights:
        raise MertoolError(
            f"{folder} adapts encoder '{trained_on['name']}' (weights {trained_on['weights'][:12]}), "
            f"not '{checkpoint.name}' ({weights[:12]}): give the same --encoder"
        )
    return run


def _make_recipe(
    options: ExtractOptions, checkpoint: encoders.CheckpointRef, *, adapter: Run | None, aligner: Run | None
) -> Recipe:
    dtype = resolve_dtype(options.dtype, resolve_device(options.device))
    if options.dtype == "auto" and options.modality == "text" and encoders.stores_half_precision(checkpoint):
        dtype = torch.bfloat16  # a large language model in float32 would need twice the memory its authors used
    layers = options.layers or _default_layers(options)
    blocks = encoders.count_layers(checkpoint)
    sums_layers = layers == LAST_FOUR
    recipe = Recipe(
        modality=options.modality,
        encoder=checkpoint.name,
        weights=checkpoint.digest(),
        layers=parse_layers(f"{max(0, blocks - 3)}-{blocks}" if sums_layers else layers, blocks),
        pool=options.pool,
        compute_dtype=dtype_name(dtype),
        storage_dtype=options.storage,
        media=_encoder_settings(options, checkpoint, adapter),
        adapter=adapter.digest() if adapter else None,
        aligner=aligner.digest() if aligner else None,
        preprocessing=PREPROCESSING_VERSIONS[options.modality],
        layer_sum=sums_layers,
    )
    if aligner:
        trained_on, own = Recipe.from_json(aligner.info["video"]), aligner_input_recipe(recipe)
        if trained_on != own:
            raise MertoolError(
                f"{options.aligner} was trained on other video features ({own.differences(trained_on)}): extract with "
                "its settings"
            )
    return recipe


def _encoder_settings(
    options: ExtractOptions, checkpoint: encoders.CheckpointRef, adapter: Run | None
) -> dict[str, Any]:
    """Settings of decoding and of the encoder's window; an adapter needs the window on which it was trained."""
    if options.modality == "video":
        return _video_settings(options, checkpoint)
    if options.modality == "text":
        return _media_settings(options)
    if options.as_mertools:
        return mertools_audio_settings(checkpoint)
    window = options.whisper_window
    if adapter:
        trained_on = adapter.info["encoder"].get("window")
        if window not in (None, trained_on):
            raise MertoolError(
                f"--whisper-window {window}: {options.adapter} was trained on the window '{trained_on}': leave it out"
            )
        window = trained_on
    return audio_settings(checkpoint, window)


def _default_layers(options: ExtractOptions) -> str:
    is_mertools_audio = options.as_mertools and options.modality == "audio"
    return LAST_FOUR if is_mertools_audio else DEFAULT_LAYERS[options.modality]


def _video_settings(options: ExtractOptions, checkpoint: encoders.CheckpointRef) -> dict[str, Any]:
    """Settings of the face crops, which are imported ones if `--faces` holds such, and of the image features."""
    settings = _media_settings(options)
    if options.faces and options.faces.exists():
        with FeatureStore(options.faces) as store:
            settings = dict(store.recipe.media) if IMPORTED in store.recipe.media else settings
    if options.as_mertools:
        if (kind := checkpoint.config().get("model_type")) != "clip":
            raise MertoolError(
                f"--as-mertools: encoder '{checkpoint.name}' ({kind}) is no CLIP with a projection: leave it out, or "
                "give clip-vit-l14"
            )
        settings[IMAGE_PROJECTION] = True
    return settings


def _media_settings(options: ExtractOptions) -> dict[str, Any]:
    if options.modality == "text":
        recognition = find_recognition(options)
        return recognition.to_media() if recognition else {}
    from mertool.faces import SETTINGS  # it imports torch and the face detector

    return {"fps": options.fps, "most_frames": MAX_FRAMES, **SETTINGS}


def _provenance(options: ExtractOptions, checkpoint: encoders.CheckpointRef) -> dict[str, Any]:
    provenance: dict[str, Any] = {
        "encoder": checkpoint.to_json(),
        "adapter": str(options.adapter.absolute()) if options.adapter else None,
        "aligner": str(options.aligner.absolute()) if options.aligner else None,
    }
    if recognition := find_recognition(options):
        provenance["asr"] = recognition.checkpoint.to_json()
    return provenance


def find_recognition(options: ExtractOptions) -> encoders.SpeechRecognition | None:
    """Find the speech recogniser that the options name; None without --asr."""
    if options.asr is None:
        return None
    return encoders.resolve_recognition(
        options.asr, language=options.language, chinese=options.chinese, vad=options.vad
    )


def _max_batch_cost(options: ExtractOptions) -> float | None:
    """Largest padded cost of a batch in the encoder's own unit: seconds of audio, frames of video."""
    if options.batch_seconds is None or options.modality == "text":
        return None
    return options.batch_seconds * (options.fps if options.modality == "video" else 1)
